#include "pending.h"

#include <stdlib.h>

int pending_push(struct pending_heap *heap, struct pending request)
{
    if (heap->count == heap->room) {
        size_t room = heap->room ? 2 * heap->room : 256;
        struct pending *grown = realloc(heap->items, room * sizeof *grown);
        if (!grown)
            return -1;
        heap->items = grown;
        heap->room = room;
    }
    size_t child = heap->count++;
    while (child > 0) {
        size_t parent = (child - 1) / 2;
        if (heap->items[parent].due <= request.due)
            break;
        heap->items[child] = heap->items[parent];
        child = parent;
    }
    heap->items[child] = request;
    return 0;
}

struct pending pending_pop(struct pending_heap *heap)
{
    struct pending first = heap->items[0], last = heap->items[--heap->count];
    size_t hole = 0;
    for (;;) {
        size_t child = 2 * hole + 1;
        if (child >= heap->count)
            break;
        if (child + 1 < heap->count && heap->items[child + 1].due < heap->items[child].due)
            child++;
        if (heap->items[child].due >= last.due)
            break;
        heap->items[hole] = heap->items[child];
        hole = child;
    }
    heap->items[hole] = last;
    return first;
}
