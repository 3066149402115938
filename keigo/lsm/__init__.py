"""What an LSM store tells about itself from outside, without a change to it.

Owns the grammar of file names (`roles`) and of thread names (`threads`) of RocksDB, Speedb, LevelDB and
Pebble. Imports nothing of Keigo; whoever needs to know what a file or a thread is for asks here.
Promises pure functions of what is passed in (`threads.job_of_thread` also reads /proc) that never raise on a
name they do not know: such a file is `Role.OTHER`, such a thread `Job.FOREGROUND` or `Job.UNKNOWN`. A role is
called immutable only where every one of these stores leaves such a file alone once it is closed.
"""
