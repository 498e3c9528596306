"""The network between regions, as one process that can be told to misbehave.

`python -m infra.relay --config FILE` listens for every region on behalf of every other one and passes bytes on
with the delay, jitter and loss of their direction, or holds them where a direction is cut. `links` and `faults`
are pure; `delay_line` and `connection` move bytes; `network` owns listeners; `control` and `client` are the two ends
of the API that steers it.
"""
