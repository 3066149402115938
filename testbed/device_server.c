/*
 * The server behind one emulated device: a FUSE file system that is one regular file.
 *
 *     device_server FILE name=value ...        mounts itself on FILE, prints "ready", ends when FILE is unmounted
 *     device_server --simulate name=value ...  reads "TIME r|w|f OFFSET SIZE" lines, prints when each is done (ns)
 *
 * The image is memory, used as far as it is written. One thread does everything: it takes a request from /dev/fuse, moves
 * the data of a write, computes when the request is done (queueing.h), and sleeps in ppoll until the next request comes
 * or the earliest one is due. Nothing is handed between threads, which costs a wake-up of 5-40 us each on a virtual
 * machine, and no lock is needed.
 *
 * The way through loop device, FUSE and scheduler takes time of its own. It is measured before (`hold`) and taken off:
 * a request counts as arrived so much earlier than it is seen here. In a closed loop this is exact at any load, for the
 * answer to one request takes the same way back before the next one sets out.
 *
 * The extended attribute user.testbed of the file is the only control:
 *     set "hold NS"               answer each request NS after it is seen, without queueing (0 at the start)
 *     set "run R0 R1 W0 W1"       be the device; reads arrive R0 + R1 * bytes ns earlier than seen, writes likewise
 *     get                         "reads N\nwrites N\n..." since the start; most_under_way since the last set;
 *                                 running: 1 after `run`, 0 after `hold`
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "pending.h"
#include "queueing.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57 /* Linux 5.6 */
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 /* Linux 5.18 */
#endif

enum {
    PAGE = 4096,
    MOST_PAGES = 256, /* a request; the kernel's own default limit */
    MOST_BYTES = MOST_PAGES * PAGE,
    /* Asynchronous direct I/O, which is what a loop device does, counts as background requests: the default of 12
       would cap the parallelism of every device. A loop device has 128 requests at most. */
    MOST_BACKGROUND = 1024,
    MOST_LATE = 200 * 1000, /* ns; what is later waited for a CPU, not for the clock */
    LATE_MEMORY = 16, /* wake-ups */
    ATTRIBUTES_VALID = 1 << 20, /* seconds: nothing but us changes them */
};
static const double TOLERANCE = 0.02; /* of the base time: at 30 k requests/s it saves half of the wake-ups */
static const char CONTROL[] = "user.testbed";

struct counts {
    uint64_t reads, writes, read_bytes, written_bytes, flushes, discards, discarded_bytes, most_under_way;
};

static struct {
    int fuse;
    char *image;
    uint64_t size;
    struct queue queue;
    bool running; /* the device's own times, not `hold` */
    double hold;
    double overhead[DIRECTIONS], overhead_per_byte[DIRECTIONS];
    double tolerance; /* an answer may be early by this, so that one wake-up serves several */
    double late; /* by which a wake-up by the clock comes late, a running mean */
    struct pending_heap pending;
    struct counts counts;
} server;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e9 + (double)at.tv_nsec;
}

static void reply(uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)data, size}};
    /* ENOENT: the request was interrupted and is gone; ENODEV: unmounted, which the next read says too. */
    if (writev(server.fuse, parts, size ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV)
        die("reply to a request: %s", strerror(errno));
}

static void complete(const struct pending *request)
{
    if (request->opcode == FUSE_READ) {
        reply(request->unique, 0, server.image + request->offset, request->size);
    } else if (request->opcode == FUSE_WRITE) {
        struct fuse_write_out out = {.size = request->size};
        reply(request->unique, 0, &out, sizeof out);
    } else {
        reply(request->unique, 0, NULL, 0);
    }
}

static void answer_later(struct pending request)
{
    if (request.due < 0 || pending_push(&server.pending, request) < 0)
        die("no memory for another request");
    if (server.pending.count > server.counts.most_under_way)
        server.counts.most_under_way = server.pending.count;
}

static void transfer(const struct fuse_in_header *in, int direction, uint64_t offset, uint32_t size, double seen)
{
    struct pending request = {.unique = in->unique, .opcode = in->opcode, .offset = offset, .size = size};
    request.due = seen + server.hold;
    if (server.running) {
        double way = server.overhead[direction] + server.overhead_per_byte[direction] * size;
        request.due = queue_request(&server.queue, direction, seen - way, offset, size);
    }
    answer_later(request);
}

static void on_read(const struct fuse_in_header *in, const struct fuse_read_in *what, double seen)
{
    uint64_t left = what->offset < server.size ? server.size - what->offset : 0;
    uint32_t size = what->size < left ? what->size : (uint32_t)left;
    server.counts.reads++;
    server.counts.read_bytes += size;
    transfer(in, READS, what->offset, size, seen);
}

static void on_write(const struct fuse_in_header *in, const struct fuse_write_in *what, double seen)
{
    if (what->offset > server.size || what->size > server.size - what->offset) {
        reply(in->unique, ENOSPC, NULL, 0);
        return;
    }
    memcpy(server.image + what->offset, what + 1, what->size);
    server.counts.writes++;
    server.counts.written_bytes += what->size;
    transfer(in, WRITES, what->offset, what->size, seen);
}

static void on_flush(const struct fuse_in_header *in, double seen)
{
    struct pending request = {.unique = in->unique, .opcode = in->opcode, .due = seen};
    if (server.running)
        request.due = queue_flush(&server.queue, seen - server.overhead[WRITES]);
    server.counts.flushes++;
    answer_later(request);
}

/* Punching a hole and zeroing are one thing here: whole pages go back to the system. */
static void on_discard(const struct fuse_in_header *in, const struct fuse_fallocate_in *what)
{
    if (!(what->mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))) {
        reply(in->unique, EOPNOTSUPP, NULL, 0);
        return;
    }
    uint64_t from = what->offset < server.size ? what->offset : server.size;
    uint64_t to = what->length < server.size - from ? from + what->length : server.size;
    uint64_t first = (from + PAGE - 1) / PAGE * PAGE, last = to / PAGE * PAGE;
    if (first < last) {
        memset(server.image + from, 0, first - from);
        memset(server.image + last, 0, to - last);
        if (madvise(server.image + first, last - first, MADV_DONTNEED_LOCKED) < 0) {
            reply(in->unique, errno, NULL, 0);
            return;
        }
    } else {
        memset(server.image + from, 0, to - from);
    }
    server.counts.discards++;
    server.counts.discarded_bytes += to - from;
    reply(in->unique, 0, NULL, 0);
}

static void on_init(const struct fuse_in_header *in, const struct fuse_init_in *what)
{
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION,
        .minor = what->minor < FUSE_KERNEL_MINOR_VERSION ? what->minor : FUSE_KERNEL_MINOR_VERSION,
        /* Without HANDLE_KILLPRIV_V2 the kernel asks for security.capability before each write. */
        .flags = what->flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2),
        .max_background = MOST_BACKGROUND,
        .congestion_threshold = MOST_BACKGROUND,
        .max_write = MOST_BYTES,
        .time_gran = 1,
        .max_pages = MOST_PAGES,
    };
    if (what->major != FUSE_KERNEL_VERSION || what->minor < 31)
        die("the kernel speaks FUSE %u.%u, this program 7.31 and newer", what->major, what->minor);
    reply(in->unique, 0, &out, sizeof out);
}

static void on_getattr(const struct fuse_in_header *in)
{
    struct fuse_attr_out out = {
        .attr_valid = ATTRIBUTES_VALID,
        .attr = {.ino = FUSE_ROOT_ID,
                 .size = server.size,
                 .blocks = server.size / 512,
                 .mode = S_IFREG | 0600,
                 .nlink = 1,
                 .blksize = PAGE},
    };
    reply(in->unique, 0, &out, sizeof out);
}

static void on_getxattr(const struct fuse_in_header *in, const struct fuse_getxattr_in *what)
{
    const struct counts *c = &server.counts;
    char text[512];
    if (strcmp((const char *)(what + 1), CONTROL) != 0) {
        reply(in->unique, ENODATA, NULL, 0);
        return;
    }
    int length = snprintf(text, sizeof text,
                          "reads %lu\nwrites %lu\nread_bytes %lu\nwritten_bytes %lu\nflushes %lu\ndiscards %lu\n"
                          "discarded_bytes %lu\nmost_under_way %lu\nrunning %d\n",
                          c->reads, c->writes, c->read_bytes, c->written_bytes, c->flushes, c->discards,
                          c->discarded_bytes, c->most_under_way, server.running);
    struct fuse_getxattr_out out = {.size = (uint32_t)length};
    if (what->size == 0)
        reply(in->unique, 0, &out, sizeof out);
    else if (what->size < (uint32_t)length)
        reply(in->unique, ERANGE, NULL, 0);
    else
        reply(in->unique, 0, text, (size_t)length);
}

static void on_setxattr(const struct fuse_in_header *in, const char *name, uint32_t size)
{
    char value[256];
    double r0, r1, w0, w1, hold;
    if (strcmp(name, CONTROL) != 0 || size >= sizeof value) {
        reply(in->unique, EOPNOTSUPP, NULL, 0);
        return;
    }
    memcpy(value, name + sizeof CONTROL, size);
    value[size] = 0;
    server.counts.most_under_way = 0;
    if (sscanf(value, "hold %lf", &hold) == 1) {
        server.running = false;
        server.hold = hold;
    } else if (sscanf(value, "run %lf %lf %lf %lf", &r0, &r1, &w0, &w1) == 4) {
        server.running = true;
        server.overhead[READS] = r0;
        server.overhead_per_byte[READS] = r1;
        server.overhead[WRITES] = w0;
        server.overhead_per_byte[WRITES] = w1;
    } else {
        reply(in->unique, EINVAL, NULL, 0);
        return;
    }
    reply(in->unique, 0, NULL, 0);
}

/* The loop driver offers discard only over a file system that tells its block size. */
static void on_statfs(const struct fuse_in_header *in)
{
    struct fuse_statfs_out out = {
        .st = {.blocks = server.size / PAGE, .files = 1, .bsize = PAGE, .namelen = 255, .frsize = PAGE},
    };
    reply(in->unique, 0, &out, sizeof out);
}

static void handle(const struct fuse_in_header *in, double seen)
{
    const void *what = in + 1;
    struct fuse_open_out opened = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
    switch (in->opcode) {
    case FUSE_READ: on_read(in, what, seen); break;
    case FUSE_WRITE: on_write(in, what, seen); break;
    case FUSE_FSYNC: on_flush(in, seen); break;
    case FUSE_FALLOCATE: on_discard(in, what); break;
    case FUSE_INIT: on_init(in, what); break;
    case FUSE_GETATTR:
    case FUSE_SETATTR: on_getattr(in); break;
    case FUSE_STATFS: on_statfs(in); break;
    case FUSE_OPEN: reply(in->unique, 0, &opened, sizeof opened); break;
    case FUSE_RELEASE: reply(in->unique, 0, NULL, 0); break;
    case FUSE_GETXATTR: on_getxattr(in, what); break;
    /* Without FUSE_SETXATTR_EXT the structure ends after its first two fields. */
    case FUSE_SETXATTR:
        on_setxattr(in, (const char *)what + FUSE_COMPAT_SETXATTR_IN_SIZE, ((const struct fuse_setxattr_in *)what)->size);
        break;
    case FUSE_INTERRUPT:
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET: break; /* no reply is expected */
    default: reply(in->unique, ENOSYS, NULL, 0);
    }
}

/*
 * Sleeps until a request comes or the earliest one is due; returns how much earlier than due (ns) it may be answered now.
 *
 * On an idle virtual machine the clock wakes a process 20-60 us late, on a busy one hardly at all; so the mean of what was
 * seen lately is taken off. A short sleep ends less late than a long one, so that at most a quarter of it is.
 */
static double wait_for_something(void)
{
    struct pollfd wait = {.fd = server.fuse, .events = POLLIN};
    if (server.pending.count == 0) {
        if (poll(&wait, 1, -1) < 0 && errno != EINTR)
            die("poll: %s", strerror(errno));
        return 0;
    }
    double start = now(), left = server.pending.items[0].due - start;
    if (left <= 0)
        return 0;
    double early = fmin(server.late, left / 4);
    left -= early;
    struct timespec timeout = {.tv_sec = (time_t)(left / 1e9)};
    timeout.tv_nsec = (long)(left - (double)timeout.tv_sec * 1e9);
    int ready = ppoll(&wait, 1, &timeout, NULL);
    if (ready < 0 && errno != EINTR)
        die("ppoll: %s", strerror(errno));
    if (ready != 0)
        return 0;
    double late = now() - start - left;
    if (late < MOST_LATE)
        server.late += (late - server.late) / LATE_MEMORY;
    return early;
}

static void serve(void)
{
    /* A write's header and data come in one piece; page-aligned so that data begin at the same offset always. */
    size_t room = MOST_BYTES + PAGE;
    void *buffer = aligned_alloc(PAGE, room);
    if (!buffer)
        die("no memory for a buffer of %zu bytes", room);
    double early = 0;
    for (;;) {
        double seen = now();
        while (server.pending.count > 0 && server.pending.items[0].due <= seen + early + server.tolerance) {
            struct pending due = pending_pop(&server.pending);
            complete(&due);
            seen = now();
        }
        early = 0;
        ssize_t got = read(server.fuse, buffer, room);
        if (got >= (ssize_t)sizeof(struct fuse_in_header)) {
            handle(buffer, now());
        } else if (got < 0 && errno == EAGAIN) {
            early = wait_for_something();
        } else if (got < 0 && errno == ENODEV) {
            return; /* unmounted */
        } else if (got >= 0 || (errno != EINTR && errno != ENOENT)) {
            die("/dev/fuse: %s", got >= 0 ? "a request without a header" : strerror(errno));
        }
    }
}

static void parse(int count, char **arguments, struct device *device)
{
    for (int i = 0; i < count; i++) {
        char *equals = strchr(arguments[i], '=');
        if (equals)
            *equals = 0;
        if (!equals || device_set(device, arguments[i], equals + 1) < 0)
            die("%s=%s: is not a parameter", arguments[i], equals ? equals + 1 : "");
    }
    if (device->size == 0 || device->way[READS].slots == 0 || device->way[WRITES].slots == 0)
        die("size, read_slots and write_slots are needed");
}

static void simulate(void)
{
    double at, done;
    char what;
    unsigned long offset, size;
    int fields;
    while ((fields = scanf("%lf %c %lu %lu", &at, &what, &offset, &size)) == 4) {
        if (what == 'f')
            done = queue_flush(&server.queue, at);
        else
            done = queue_request(&server.queue, what == 'w' ? WRITES : READS, at, offset, size);
        printf("%.17g\n", done);
    }
    if (fields != EOF)
        die("a line is not TIME r|w|f OFFSET SIZE");
}

/*
 * What this process needs while the kernel writes pages back through it must not depend on that write-back: its memory
 * stays resident (locked as it is touched; the image is sparse), and what it allocates is taken without waiting for
 * I/O. Else reclaim waits for the device, and the device for reclaim.
 */
static void prepare(void)
{
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
        die("mlockall: %s", strerror(errno));
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0) {
        if (errno != EPERM)
            die("PR_SET_IO_FLUSHER: %s", strerror(errno));
        puts("note: without CAP_SYS_RESOURCE the devices may hang when memory runs out");
    }
    /* The default of 50 us would be added to every wait. */
    if (prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0) < 0)
        die("PR_SET_TIMERSLACK: %s", strerror(errno));
    /* A device does not wait for a CPU. Real-time priority would double the CPU used, by waking for each request. */
    if (setpriority(PRIO_PROCESS, 0, -20) < 0)
        die("setpriority: %s", strerror(errno));
    server.image = mmap(NULL, server.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (server.image == MAP_FAILED)
        die("an image of %lu bytes: %s", server.size, strerror(errno));
    /* Memory is used by the page that is written, not by 2 MiB around it. */
    if (madvise(server.image, server.size, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
        die("madvise: %s", strerror(errno));
}

static void present(const char *file)
{
    char options[128];
    server.fuse = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (server.fuse < 0)
        die("/dev/fuse: %s", strerror(errno));
    snprintf(options, sizeof options, "fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d", server.fuse, S_IFREG | 0600,
             MOST_BYTES);
    if (mount("keigo-testbed", file, "fuse.testbed", MS_NOSUID | MS_NODEV | MS_NOATIME, options) < 0)
        die("%s: mount: %s", file, strerror(errno));
    /* Who started this reads to the end of the pipe. */
    if (puts("ready") == EOF || !freopen("/dev/null", "w", stdout))
        die("stdout: %s", strerror(errno));
}

int main(int count, char **arguments)
{
    struct device device = {0};
    if (count < 3)
        die("usage: device_server FILE|--simulate name=value ...");
    parse(count - 2, arguments + 2, &device);
    server.size = device.size;
    server.tolerance = TOLERANCE * fmin(device.way[READS].base, device.way[WRITES].base);
    if (queue_init(&server.queue, &device) < 0)
        die("no memory for the queue");
    if (strcmp(arguments[1], "--simulate") == 0) {
        simulate();
        return 0;
    }
    prepare();
    present(arguments[1]);
    serve();
    return 0;
}
