-- Begins a generation and announces it in one step: messages come in the order of the generations.
-- KEYS[1] the generation. ARGV: where a Redis without one begins, channel.
redis.call('SET', KEYS[1], ARGV[1], 'NX')
redis.call('INCR', KEYS[1])
-- The number as text: Lua would round it. `decode_message` reads the message as a `Flush`.
local generation = redis.call('GET', KEYS[1])
redis.call('PUBLISH', ARGV[2], '{"flush":' .. generation .. '}')
return generation
