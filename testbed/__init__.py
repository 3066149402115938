"""Emulated devices on one machine: block devices with the latency, parallelism and bandwidth of a published figure.

    fio, RocksDB, Keigo
      | ext4, on a loop device with direct I/O
      | one file, presented over FUSE
    device_server (C): P slots, a base time, a shared bus each way; the image is memory

`scripts/testbed` builds the server and runs this package. All times are stretched by one factor (the dilation), so that
the way through loop device and FUSE stays small beside them, and what is left of it is measured and taken off.

    parameters   device files (YAML), dilation, what a device should do at k requests
    server       builds, starts, asks and ends a device_server
    stack        one device: server, loop device, ext4, mount; and all of it down again
    calibrate    what the way through the stack costs by itself
    state        what is up in a directory
    bed          up, down, status
    check        fio over k against what the parameters say
    cli          the command line

May import `keigo.errors`, `keigo.units` and `keigo.mounts`; nothing of Keigo imports it.
"""
