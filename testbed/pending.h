/* Requests that wait for their time: a binary heap, the earliest due first. */
#ifndef TESTBED_PENDING_H
#define TESTBED_PENDING_H

#include <stddef.h>
#include <stdint.h>

struct pending {
    double due; /* ns on the monotonic clock */
    uint64_t unique, offset;
    uint32_t opcode, size;
};

struct pending_heap {
    struct pending *items;
    size_t count, room;
};

/* 0, or -1 without memory. */
int pending_push(struct pending_heap *heap, struct pending request);

/* Takes the earliest; there must be one. */
struct pending pending_pop(struct pending_heap *heap);

#endif
