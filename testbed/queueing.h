/*
 * When a request is done: the arithmetic of an emulated device, without a clock, a thread or a byte of data.
 *
 * A request waits for one of the slots of its direction, holds it for the base time, and then takes its turn on the
 * direction's bus:
 *
 *     start = max(arrival, earliest free slot)
 *     ready = start + factor * base                            the slot is free again
 *     done  = max(ready, bus free) + factor * size / bandwidth
 *
 *     factor = decline * interference
 *     decline      = 1 + d * max(0, n - slots) / slots          n requests of the direction are under way, this included
 *     interference = 1 + c * min(w, slots) / slots              reads only; w writes are under way, slots are theirs
 *
 * A disk with a head has one slot for both directions, held until the transfer is over:
 *
 *     done = max(arrival, head free) + base + seek + half a rotation + size / bandwidth
 *     seek = adjacent + (full - adjacent) * sqrt(distance / size of the disk)
 *
 * with neither seek nor rotation where the request begins at the byte after the previous one.
 *
 * A flush is done its own time after all writes that arrived before it.
 *
 * Times are nanoseconds in doubles: exact for integers up to 2^53, which is 104 days.
 */
#ifndef TESTBED_QUEUEING_H
#define TESTBED_QUEUEING_H

#include <stddef.h>
#include <stdint.h>

enum { READS = 0, WRITES = 1, DIRECTIONS = 2, MOST_SLOTS = 1024 };

/* A binary heap of times, the earliest first. */
struct times {
    double *at;
    size_t count, room;
};

struct direction {
    double base; /* ns */
    double per_byte; /* ns */
    double decline; /* d */
    unsigned slots;
};

struct device {
    uint64_t size; /* bytes */
    struct direction way[DIRECTIONS];
    double interference; /* c */
    double flush; /* ns */
    double seek_adjacent, seek_full, half_rotation; /* ns; seek_full is 0 on a device without a head */
};

struct queue {
    struct device device;
    struct times slots[DIRECTIONS]; /* when each slot is free */
    struct times under_way[DIRECTIONS]; /* when each request is done */
    double bus_free[DIRECTIONS];
    double writes_done; /* the last of them */
    double head_free;
    uint64_t head; /* byte after the last request */
};

/* Sets one parameter by its name; 0, or -1 if the name or the value is not one. */
int device_set(struct device *device, const char *name, const char *value);

/* 0, or -1 without memory. */
int queue_init(struct queue *queue, const struct device *device);

/* When a request is done that arrives now, in ns; below 0 without memory. Arrivals may be out of order by a little. */
double queue_request(struct queue *queue, int direction, double arrival, uint64_t offset, uint64_t size);
double queue_flush(struct queue *queue, double arrival);

#endif
