SELECT
    set_config('palaver.replication_password', $1, true),
    set_config('palaver.writer_password', $2, true),
    set_config('scram_iterations', $3, true)
