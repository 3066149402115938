#include "queueing.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static double later(double a, double b) { return a > b ? a : b; }

static int times_push(struct times *times, double at)
{
    if (times->count == times->room) {
        size_t room = times->room ? 2 * times->room : 64;
        double *grown = realloc(times->at, room * sizeof *grown);
        if (!grown)
            return -1;
        times->at = grown;
        times->room = room;
    }
    size_t child = times->count++;
    while (child > 0) {
        size_t parent = (child - 1) / 2;
        if (times->at[parent] <= at)
            break;
        times->at[child] = times->at[parent];
        child = parent;
    }
    times->at[child] = at;
    return 0;
}

static double times_pop(struct times *times)
{
    double first = times->at[0], last = times->at[--times->count];
    size_t hole = 0;
    for (;;) {
        size_t child = 2 * hole + 1;
        if (child >= times->count)
            break;
        if (child + 1 < times->count && times->at[child + 1] < times->at[child])
            child++;
        if (times->at[child] >= last)
            break;
        times->at[hole] = times->at[child];
        hole = child;
    }
    times->at[hole] = last;
    return first;
}

static size_t still_under_way(struct times *times, double now)
{
    while (times->count > 0 && times->at[0] <= now)
        times_pop(times);
    return times->count;
}

int device_set(struct device *device, const char *name, const char *value)
{
    const struct {
        const char *name;
        double *to;
    } numbers[] = {
        {"read_base", &device->way[READS].base},
        {"read_per_byte", &device->way[READS].per_byte},
        {"read_decline", &device->way[READS].decline},
        {"write_base", &device->way[WRITES].base},
        {"write_per_byte", &device->way[WRITES].per_byte},
        {"write_decline", &device->way[WRITES].decline},
        {"interference", &device->interference},
        {"flush", &device->flush},
        {"seek_adjacent", &device->seek_adjacent},
        {"seek_full", &device->seek_full},
        {"half_rotation", &device->half_rotation},
    };
    char *end;
    errno = 0;
    double number = strtod(value, &end);
    if (errno || end == value || *end || !isfinite(number) || number < 0)
        return -1;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(name, numbers[i].name) == 0) {
            *numbers[i].to = number;
            return 0;
        }
    bool reads = strcmp(name, "read_slots") == 0;
    if (reads || strcmp(name, "write_slots") == 0) {
        if (number < 1 || number > MOST_SLOTS || number != floor(number))
            return -1;
        device->way[reads ? READS : WRITES].slots = (unsigned)number;
        return 0;
    }
    if (strcmp(name, "size") == 0) {
        device->size = (uint64_t)number;
        return 0;
    }
    return -1;
}

int queue_init(struct queue *queue, const struct device *device)
{
    memset(queue, 0, sizeof *queue);
    queue->device = *device;
    for (int direction = 0; direction < DIRECTIONS; direction++)
        for (unsigned slot = 0; slot < device->way[direction].slots; slot++)
            if (times_push(&queue->slots[direction], 0) < 0)
                return -1;
    return 0;
}

static double on_a_head(struct queue *queue, int direction, double arrival, uint64_t offset, uint64_t size)
{
    const struct device *device = &queue->device;
    double done = later(arrival, queue->head_free) + device->way[direction].base;
    if (offset != queue->head) {
        uint64_t distance = offset > queue->head ? offset - queue->head : queue->head - offset;
        double share = sqrt((double)distance / (double)device->size);
        done += device->seek_adjacent + (device->seek_full - device->seek_adjacent) * share + device->half_rotation;
    }
    done += (double)size * device->way[direction].per_byte;
    queue->head = offset + size;
    queue->head_free = done;
    return done;
}

static double in_a_slot(struct queue *queue, int direction, double arrival, uint64_t size)
{
    const struct device *device = &queue->device;
    const struct direction *way = &device->way[direction];
    double factor = 1, slots = way->slots;
    double together = (double)still_under_way(&queue->under_way[direction], arrival) + 1;
    if (together > slots)
        factor += way->decline * (together - slots) / slots;
    if (direction == READS && device->interference > 0) {
        double write_slots = device->way[WRITES].slots;
        double writes = (double)still_under_way(&queue->under_way[WRITES], arrival);
        factor *= 1 + device->interference * (writes < write_slots ? writes : write_slots) / write_slots;
    }
    double ready = later(arrival, times_pop(&queue->slots[direction])) + factor * way->base;
    if (times_push(&queue->slots[direction], ready) < 0)
        return -1;
    double done = later(ready, queue->bus_free[direction]) + factor * ((double)size * way->per_byte);
    queue->bus_free[direction] = done;
    return times_push(&queue->under_way[direction], done) < 0 ? -1 : done;
}

double queue_request(struct queue *queue, int direction, double arrival, uint64_t offset, uint64_t size)
{
    double done = queue->device.seek_full > 0 ? on_a_head(queue, direction, arrival, offset, size)
                                              : in_a_slot(queue, direction, arrival, size);
    if (direction == WRITES)
        queue->writes_done = later(queue->writes_done, done);
    return done;
}

double queue_flush(struct queue *queue, double arrival)
{
    return later(arrival, queue->writes_done) + queue->device.flush;
}
