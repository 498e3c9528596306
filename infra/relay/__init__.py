"""The relay: one process that carries all traffic between regions and injects network faults.

`python -m infra.relay --config FILE` has a listener for each service that one region reaches in another. It forwards
bytes with the delay, jitter and loss of their direction, or holds them while the direction is cut. `links` and `faults`
are pure; `delay_line` and `connection` forward bytes; `network` owns the listeners; `control` and `client` are server
and client of the control API.
"""
