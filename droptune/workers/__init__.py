"""Processes that work on studies, on this machine and on others.

    devices.py    the seats: how many processes, and the device of each
    child.py      a process that works on one study; what it tells goes through a pipe
    process.py    such a process as its parent sees it
    crew.py       a process a seat: started, replaced when they die, stopped together
    display.py    one progress display of all of them
    paying.py     whether more processes than one pay
    local.py      one study, run by the processes of this machine
    allowed.py    what a worker runs for others
    service.py    `droptune worker`: takes studies from the queue of a database

Nobody coordinates: each process runs the ordinary `Study.optimize` on the same database.
"""
