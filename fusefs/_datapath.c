/*
 * The data path: threads that take FUSE requests from /dev/fuse and serve the hot ones without the GIL.
 *
 * next(device) is called by each worker thread. It reads requests and answers READ, FSYNC, FLUSH and RELEASE's
 * bookkeeping-free cases here; the first request of another kind is returned to Python, which answers it and calls again.
 *
 * Which files are read. A foreground read sets its slot's bit in touched[], and fresh() returns what the slots with a bit
 * have counted since it last did: a look at 128 KiB, however many files are open.
 *
 * Who holds what. slots[] maps a handle number to its descriptors. Python sets a slot before it answers the OPEN that
 * hands the number to the kernel, and clears it in RELEASE, which the kernel sends after the last request that uses the
 * number: so no worker sees a slot change under a request, but for its tier. A migration replaces the file behind a
 * descriptor with dup2, and then the slot's tier: reads under way finish on the old file, later ones get the new. Counters
 * are atomic and only ever grow.
 *
 * How many workers there are. One that would be too many to wait for requests returns None and ends; one that leaves none
 * waiting writes to the `starved` eventfd, for Python to start another: requests that hang on one device must not hold up
 * those for others.
 *
 * classes[] remembers what kind of thread a tid is: a direct-mapped table of (tid, class, until), each entry one atomic
 * word, so that a reader sees all of it or none. forget(tid) clears an entry when its thread has ended; it expires too,
 * since a thread may change its name.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "../keigo/cache/chunks.h"

#define MAX_HANDLES (1u << 20)
#define BUFFER_SIZE ((1u << 20) + 8192) /* max_write of 1 MiB and its headers */
/* What of a buffer is in memory before the first request. The kernel answers a request with EIO if SIGKILL comes while
 * it copies it into a page that is not there yet (get_user_pages gives up); the next daemon is to be asked instead. */
#define PRESENT ((128u << 10) + 8192)
#define ALIGNMENT 4096
#define CLASSES 4 /* unknown, foreground, flush, compaction */
#define CLASS_SLOTS 1024
#define CLASS_SECONDS 5
#define MAX_TIERS 64

enum { FLUSHED = 1, DOUBTFUL = 2 };
enum { FOREGROUND = 1 };

struct slot {
    _Atomic int fd;     /* buffered, plus 1; 0: not ours to serve (memory starts as zeros) */
    _Atomic int direct; /* O_DIRECT, plus 1; 0: none */
    _Atomic uint32_t state;
    _Atomic uint32_t tier;
    uint64_t node;
    _Atomic uint64_t reads[CLASSES];
    _Atomic uint64_t bytes[CLASSES];
    _Atomic(struct chunks *) chunks; /* which parts are cached; NULL: none ever; a reference */
    _Atomic uint64_t home_reads;     /* of the foreground, that did not come from the cache as a whole */
    _Atomic uint64_t home_bytes;
    uint64_t told_reads, told_bytes; /* of the foreground, that `fresh` or `clear` returned; under the GIL */
};

/* All reads of one tier's files. */
struct tally {
    _Atomic uint64_t reads, bytes, nanoseconds;
    _Atomic int under_way;
    _Atomic uint64_t failures; /* of reads and syncs, by what may be the device's fault */
    _Atomic uint64_t syncs;
    _Atomic int syncing;
};

static struct slot *slots;
static _Atomic uint64_t touched[MAX_HANDLES / 64]; /* a bit per slot: it has foreground reads that are not told yet */
static struct tally tallies[MAX_TIERS];
static _Atomic uint64_t classes[CLASS_SLOTS]; /* tid:32 class:8 until (seconds, low 24 bits):24 */
static _Atomic int waiting; /* workers in read(2) on the device */
static int starved = -1;    /* an eventfd */
static unsigned cache_tier; /* which has the shadows */
static PyObject *classify;                    /* callable: tid -> class */
static PyTypeObject *chunks_type;

struct buffers {
    char *in;
    char *out;
};

static _Thread_local struct buffers mine;

static int allocate_buffers(void)
{
    if (mine.in)
        return 0;
    if (posix_memalign((void **)&mine.out, ALIGNMENT, BUFFER_SIZE))
        return -1;
    if (posix_memalign((void **)&mine.in, ALIGNMENT, BUFFER_SIZE)) {
        free(mine.out);
        return -1;
    }
    memset(mine.in, 0, PRESENT);
    return 0;
}

static void free_buffers(void)
{
    free(mine.in);
    free(mine.out);
    mine.in = mine.out = NULL;
}

static uint32_t seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint32_t)now.tv_sec & 0xffffff;
}

/* The class of a thread; asks Python, taking the GIL, when it is not remembered. */
static unsigned class_of(uint32_t tid, PyThreadState **saved)
{
    _Atomic uint64_t *entry = &classes[tid % CLASS_SLOTS];
    uint64_t known = atomic_load_explicit(entry, memory_order_relaxed);
    uint32_t now = seconds();
    uint32_t left = ((uint32_t)(known & 0xffffff) - now) & 0xffffff;
    if ((uint32_t)(known >> 32) == tid && left <= CLASS_SECONDS)
        return (unsigned)(known >> 24) & 0xff;

    unsigned found = 0;
    PyEval_RestoreThread(*saved);
    PyObject *answer = PyObject_CallFunction(classify, "I", tid);
    long value = answer ? PyLong_AsLong(answer) : -1;
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(classify);
    else if (value >= 0 && value < CLASSES)
        found = (unsigned)value;
    Py_XDECREF(answer);
    *saved = PyEval_SaveThread();
    uint64_t until = (seconds() + CLASS_SECONDS) & 0xffffff;
    atomic_store_explicit(entry, (uint64_t)tid << 32 | (uint64_t)found << 24 | until, memory_order_relaxed);
    return found;
}

/* Answer a request. ENOENT: it was interrupted or the connection is gone; nobody waits for the answer. */
static void answer(int device, uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header head = {.len = sizeof head + (error ? 0 : size), .error = -error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, error ? 0 : size}};
    while (writev(device, parts, size && !error ? 2 : 1) < 0 && errno == EINTR)
        ;
}

static struct slot *slot_of(uint64_t handle)
{
    if (handle >= MAX_HANDLES)
        return NULL;
    struct slot *slot = &slots[handle];
    return atomic_load_explicit(&slot->fd, memory_order_acquire) ? slot : NULL;
}

/* All of `size` bytes or up to the end of the file: the kernel takes a short answer for the end. */
static ssize_t read_fully(int fd, char *to, size_t size, off_t offset)
{
    size_t done = 0;
    while (done < size) {
        ssize_t got = pread(fd, to + done, size - done, offset + (off_t)done);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

static ssize_t read_slot(struct slot *slot, char *to, size_t size, uint64_t offset)
{
    int direct = atomic_load_explicit(&slot->direct, memory_order_relaxed) - 1;
    if (direct >= 0 && offset % ALIGNMENT == 0 && size % ALIGNMENT == 0) {
        /* Not read_fully: after a short direct read the rest is the unaligned end. */
        ssize_t got = pread(direct, to, size, (off_t)offset);
        if (got == (ssize_t)size || (got >= 0 && got % 512 != 0))
            return got;
        if (got < 0 && errno != EINVAL && errno != EINTR)
            return got;
    }
    return read_fully(atomic_load_explicit(&slot->fd, memory_order_relaxed) - 1, to, size, (off_t)offset);
}

static uint64_t monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* An error that speaks of a device, not of who uses it: those of keigo/tiers/health.py that pread and fsync may give. */
static void note_failure(unsigned tier, int error)
{
    switch (error) {
    case EIO:
    case EROFS:
    case ENODEV:
    case ENXIO:
    case ENOTCONN:
    case ESTALE:
    case ETIMEDOUT:
    case EREMOTEIO:
    case EUCLEAN:
    case EBADMSG:
    case ESHUTDOWN:
        atomic_fetch_add_explicit(&tallies[tier].failures, 1, memory_order_relaxed);
    }
}

/* Read at the slot's home, or from the shadow of `from`, counted for the tier. */
static ssize_t read_counted(void *of, struct chunks *from, char *to, size_t size, size_t room, uint64_t offset)
{
    struct slot *slot = of;
    struct tally *tally = &tallies[from ? cache_tier : atomic_load_explicit(&slot->tier, memory_order_relaxed)];
    atomic_fetch_add_explicit(&tally->under_way, 1, memory_order_relaxed);
    uint64_t began = monotonic();
    ssize_t got = from ? chunks_read_shadow(from, to, size, room, offset) : read_slot(slot, to, size, offset);
    int error = errno;
    if (got < 0 && !from)
        note_failure((unsigned)(tally - tallies), error);
    atomic_fetch_add_explicit(&tally->nanoseconds, monotonic() - began, memory_order_relaxed);
    atomic_fetch_add_explicit(&tally->bytes, got > 0 ? (uint64_t)got : 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&tally->reads, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&tally->under_way, 1, memory_order_relaxed);
    errno = error;
    return got;
}

/* After the slot's counters: whoever takes the bit sees them. */
static void touch(uint64_t handle)
{
    _Atomic uint64_t *word = &touched[handle / 64];
    uint64_t bit = (uint64_t)1 << handle % 64;
    if (!(atomic_load(word) & bit))
        atomic_fetch_or(word, bit);
}

/* Serve a request here if it is one of ours; 0 if Python has to. */
static int serve(int device, const struct fuse_in_header *head, size_t length, PyThreadState **saved)
{
    const void *body = head + 1;
    size_t rest = length - sizeof *head;
    struct slot *slot;
    switch (head->opcode) {
    case FUSE_READ: {
        const struct fuse_read_in *in = body;
        if (rest < sizeof *in || in->size > BUFFER_SIZE || !(slot = slot_of(in->fh)))
            return 0;
        struct chunks *chunks = atomic_load_explicit(&slot->chunks, memory_order_acquire);
        size_t served = 0;
        ssize_t got = chunks ? chunks_read(chunks, read_counted, slot, mine.out, in->size, in->offset, &served, saved)
                             : read_counted(slot, NULL, mine.out, in->size, in->size, in->offset);
        if (got < 0) {
            answer(device, head->unique, errno, NULL, 0);
            return 1;
        }
        /* Before the answer: the thread waits for it, so its name is still to be read, and counts are never late. */
        unsigned kind = class_of(head->pid, saved);
        atomic_fetch_add_explicit(&slot->reads[kind], 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&slot->bytes[kind], (uint64_t)got, memory_order_relaxed);
        if (chunks)
            chunks_count(chunks, (size_t)got, served);
        if (kind == FOREGROUND) {
            if (chunks)
                chunks_warm(chunks, in->offset, (size_t)got, served);
            if (!served || served < (size_t)got) {
                atomic_fetch_add_explicit(&slot->home_reads, 1, memory_order_relaxed);
                atomic_fetch_add_explicit(&slot->home_bytes, (uint64_t)got - served, memory_order_relaxed);
                touch(in->fh);
            }
        }
        answer(device, head->unique, 0, mine.out, (size_t)got);
        return 1;
    }
    case FUSE_FSYNC: {
        const struct fuse_fsync_in *in = body;
        if (rest < sizeof *in || !(slot = slot_of(in->fh)) ||
            atomic_load_explicit(&slot->state, memory_order_relaxed) & DOUBTFUL)
            return 0;
        int fd = atomic_load_explicit(&slot->fd, memory_order_relaxed) - 1;
        unsigned tier = atomic_load_explicit(&slot->tier, memory_order_relaxed);
        atomic_fetch_add_explicit(&tallies[tier].syncing, 1, memory_order_relaxed);
        int failed = in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(fd) : fsync(fd);
        int error = failed ? errno : 0;
        atomic_fetch_add_explicit(&tallies[tier].syncs, 1, memory_order_relaxed);
        atomic_fetch_sub_explicit(&tallies[tier].syncing, 1, memory_order_relaxed);
        if (failed)
            note_failure(tier, error);
        answer(device, head->unique, error, NULL, 0);
        return 1;
    }
    case FUSE_FLUSH: {
        const struct fuse_flush_in *in = body;
        if (rest < sizeof *in || !(slot = slot_of(in->fh)))
            return 0;
        atomic_fetch_or_explicit(&slot->state, FLUSHED, memory_order_release);
        answer(device, head->unique, 0, NULL, 0);
        return 1;
    }
    default:
        return 0;
    }
}

static PyObject *datapath_next(PyObject *module, PyObject *args)
{
    int device, most_waiting;
    if (!PyArg_ParseTuple(args, "ii", &device, &most_waiting))
        return NULL;
    if (allocate_buffers())
        return PyErr_NoMemory();
    int error;
    PyThreadState *saved = PyEval_SaveThread();
    for (;;) {
        if (atomic_fetch_add(&waiting, 1) >= most_waiting) {
            if (atomic_fetch_sub(&waiting, 1) == 1)
                eventfd_write(starved, 1); /* all others left meanwhile, and the last of them counted us, too */
            free_buffers();
            PyEval_RestoreThread(saved);
            Py_RETURN_NONE;
        }
        ssize_t length = read(device, mine.in, BUFFER_SIZE);
        error = errno;
        if (atomic_fetch_sub(&waiting, 1) == 1)
            eventfd_write(starved, 1); /* cannot fail before the counter is at 2^64 - 2; each read sets it to 0 */
        if (length < 0) {
            /* ENOENT: the request was interrupted before we had it. */
            if (error == EINTR || error == EAGAIN || error == ENOENT)
                continue;
            break;
        }
        const struct fuse_in_header *head = (const void *)mine.in;
        if ((size_t)length < sizeof *head || head->len != (size_t)length) {
            error = EIO;
            break;
        }
        if (serve(device, head, (size_t)length, &saved))
            continue;
        PyEval_RestoreThread(saved);
        PyObject *request = PyBytes_FromStringAndSize(mine.in, length);
        if (request)
            return request;
        PyErr_Clear(); /* no memory: whoever waits for the answer must get one */
        saved = PyEval_SaveThread();
        answer(device, head->unique, ENOMEM, NULL, 0);
    }
    PyEval_RestoreThread(saved);
    free_buffers();
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static struct slot *slot_argument(unsigned long long handle)
{
    if (handle < MAX_HANDLES)
        return &slots[handle];
    PyErr_SetString(PyExc_IndexError, "no such slot");
    return NULL;
}

static int tier_is_valid(unsigned int tier)
{
    if (tier < MAX_TIERS)
        return 1;
    PyErr_SetString(PyExc_IndexError, "no such tier");
    return 0;
}

static PyObject *datapath_set(PyObject *module, PyObject *args)
{
    unsigned long long handle;
    int fd, direct;
    unsigned int tier;
    unsigned long long node;
    if (!PyArg_ParseTuple(args, "KiiIK", &handle, &fd, &direct, &tier, &node))
        return NULL;
    struct slot *slot = slot_argument(handle);
    if (!slot || !tier_is_valid(tier))
        return NULL;
    for (int kind = 0; kind < CLASSES; kind++) {
        atomic_store_explicit(&slot->reads[kind], 0, memory_order_relaxed);
        atomic_store_explicit(&slot->bytes[kind], 0, memory_order_relaxed);
    }
    slot->home_reads = slot->home_bytes = slot->told_reads = slot->told_bytes = 0;
    slot->node = node;
    atomic_store_explicit(&slot->state, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->tier, tier, memory_order_relaxed);
    atomic_store_explicit(&slot->direct, direct + 1, memory_order_relaxed);
    atomic_store_explicit(&slot->fd, fd + 1, memory_order_release);
    Py_RETURN_NONE;
}

static PyObject *datapath_move(PyObject *module, PyObject *args)
{
    unsigned long long handle;
    unsigned int tier;
    if (!PyArg_ParseTuple(args, "KI", &handle, &tier))
        return NULL;
    struct slot *slot = slot_argument(handle);
    if (!slot || !tier_is_valid(tier))
        return NULL;
    atomic_store_explicit(&slot->tier, tier, memory_order_relaxed);
    Py_RETURN_NONE;
}

/* A chunks object, or NULL with an exception. */
static struct chunks *chunks_argument(PyObject *object)
{
    if (PyObject_TypeCheck(object, chunks_type))
        return (struct chunks *)object;
    PyErr_SetString(PyExc_TypeError, "not chunks");
    return NULL;
}

static PyObject *datapath_attach(PyObject *module, PyObject *args)
{
    unsigned long long handle;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "KO", &handle, &object))
        return NULL;
    struct slot *slot = slot_argument(handle);
    struct chunks *chunks = slot ? chunks_argument(object) : NULL;
    if (!chunks)
        return NULL;
    struct chunks *known = atomic_load(&slot->chunks);
    /* A migration may meet a handle that is not set yet, or cleared already: its number may be another file's next. */
    if (known == chunks || !atomic_load(&slot->fd))
        Py_RETURN_NONE;
    if (known) {
        PyErr_SetString(PyExc_ValueError, "the slot has other chunks");
        return NULL;
    }
    Py_INCREF(object);
    atomic_store_explicit(&slot->chunks, chunks, memory_order_release);
    Py_RETURN_NONE;
}

/* What a slot has counted at home of the foreground since last asked: (reads, bytes), before them the node if wanted. */
static PyObject *tell(struct slot *slot, int with_node)
{
    uint64_t reads = atomic_load(&slot->home_reads), bytes = atomic_load(&slot->home_bytes);
    unsigned long long more = reads - slot->told_reads, more_bytes = bytes - slot->told_bytes;
    slot->told_reads = reads;
    slot->told_bytes = bytes;
    if (with_node)
        return Py_BuildValue("KKK", (unsigned long long)slot->node, more, more_bytes);
    return Py_BuildValue("KK", more, more_bytes);
}

static PyObject *datapath_clear(PyObject *module, PyObject *args)
{
    unsigned long long handle;
    if (!PyArg_ParseTuple(args, "K", &handle))
        return NULL;
    struct slot *slot = slot_argument(handle);
    if (!slot)
        return NULL;
    atomic_store_explicit(&slot->fd, 0, memory_order_release);
    struct chunks *chunks = atomic_exchange(&slot->chunks, NULL);
    Py_XDECREF((PyObject *)chunks);
    atomic_fetch_and(&touched[handle / 64], ~((uint64_t)1 << handle % 64));
    return tell(slot, 0);
}

static PyObject *datapath_fresh(PyObject *module, PyObject *unused)
{
    PyObject *found = PyList_New(0);
    if (!found)
        return NULL;
    for (size_t word = 0; word < MAX_HANDLES / 64; word++) {
        if (!atomic_load_explicit(&touched[word], memory_order_relaxed))
            continue;
        uint64_t bits = atomic_exchange(&touched[word], 0);
        for (; bits; bits &= bits - 1) {
            PyObject *told = tell(&slots[word * 64 + (size_t)__builtin_ctzll(bits)], 1);
            if (!told || PyList_Append(found, told)) {
                Py_XDECREF(told);
                Py_DECREF(found);
                return NULL;
            }
            Py_DECREF(told);
        }
    }
    return found;
}

static PyObject *datapath_flushed(PyObject *module, PyObject *args)
{
    unsigned long long handle;
    if (!PyArg_ParseTuple(args, "K", &handle))
        return NULL;
    struct slot *slot = slot_argument(handle);
    if (!slot)
        return NULL;
    return PyBool_FromLong(atomic_load_explicit(&slot->state, memory_order_acquire) & FLUSHED);
}

static PyObject *datapath_doubt(PyObject *module, PyObject *args)
{
    unsigned long long handle;
    if (!PyArg_ParseTuple(args, "K", &handle))
        return NULL;
    struct slot *slot = slot_argument(handle);
    if (!slot)
        return NULL;
    atomic_fetch_or_explicit(&slot->state, DOUBTFUL, memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *datapath_counts(PyObject *module, PyObject *args)
{
    unsigned long long handle;
    if (!PyArg_ParseTuple(args, "K", &handle))
        return NULL;
    struct slot *slot = slot_argument(handle);
    if (!slot)
        return NULL;
    PyObject *found = PyTuple_New(CLASSES);
    if (!found)
        return NULL;
    for (int kind = 0; kind < CLASSES; kind++) {
        PyObject *pair = Py_BuildValue("KK", (unsigned long long)atomic_load(&slot->reads[kind]),
                                       (unsigned long long)atomic_load(&slot->bytes[kind]));
        if (!pair) {
            Py_DECREF(found);
            return NULL;
        }
        PyTuple_SET_ITEM(found, kind, pair);
    }
    return found;
}

static PyObject *datapath_tally(PyObject *module, PyObject *args)
{
    unsigned int tier;
    if (!PyArg_ParseTuple(args, "I", &tier) || !tier_is_valid(tier))
        return NULL;
    struct tally *tally = &tallies[tier];
    return Py_BuildValue("KKKi", (unsigned long long)atomic_load(&tally->reads),
                         (unsigned long long)atomic_load(&tally->bytes),
                         (unsigned long long)atomic_load(&tally->nanoseconds), atomic_load(&tally->under_way));
}

static PyObject *datapath_failures(PyObject *module, PyObject *args)
{
    unsigned int tier;
    if (!PyArg_ParseTuple(args, "I", &tier) || !tier_is_valid(tier))
        return NULL;
    return PyLong_FromUnsignedLongLong(atomic_load(&tallies[tier].failures));
}

static PyObject *datapath_syncs(PyObject *module, PyObject *args)
{
    unsigned int tier;
    if (!PyArg_ParseTuple(args, "I", &tier) || !tier_is_valid(tier))
        return NULL;
    return Py_BuildValue("Ki", (unsigned long long)atomic_load(&tallies[tier].syncs),
                         atomic_load(&tallies[tier].syncing));
}

static PyObject *datapath_set_cache_tier(PyObject *module, PyObject *args)
{
    unsigned int tier;
    if (!PyArg_ParseTuple(args, "I", &tier) || !tier_is_valid(tier))
        return NULL;
    cache_tier = tier;
    Py_RETURN_NONE;
}

static PyObject *datapath_set_starved(PyObject *module, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "i", &starved))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *datapath_forget(PyObject *module, PyObject *args)
{
    unsigned int tid;
    if (!PyArg_ParseTuple(args, "I", &tid))
        return NULL;
    _Atomic uint64_t *entry = &classes[tid % CLASS_SLOTS];
    uint64_t known = atomic_load(entry);
    if ((uint32_t)(known >> 32) == tid)
        atomic_compare_exchange_strong(entry, &known, 0);
    Py_RETURN_NONE;
}

static PyObject *datapath_set_classifier(PyObject *module, PyObject *function)
{
    Py_INCREF(function);
    Py_XSETREF(classify, function);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"next", datapath_next, METH_VARARGS, "Serve requests of a device until one is for Python; returns it, or None to end."},
    {"set", datapath_set, METH_VARARGS, "Let the data path serve a handle by these descriptors."},
    {"move", datapath_move, METH_VARARGS, "Count a handle's reads for another tier from now on."},
    {"attach", datapath_attach, METH_VARARGS, "Read a set handle's file by these chunks, too, until it is cleared."},
    {"clear", datapath_clear, METH_VARARGS, "End what set began; returns what `fresh` would say of it: (reads, bytes)."},
    {"fresh", datapath_fresh, METH_NOARGS,
     "[(node, reads, bytes)] of the foreground, not from the cache, since last asked, by handle."},
    {"flushed", datapath_flushed, METH_VARARGS, "Whether a descriptor of the handle has been closed."},
    {"doubt", datapath_doubt, METH_VARARGS, "Leave the syncs of a set handle to Python."},
    {"counts", datapath_counts, METH_VARARGS, "(reads, bytes) of a handle for each class of thread."},
    {"tally", datapath_tally, METH_VARARGS, "(reads, bytes, nanoseconds, under way) of all handles of a tier so far."},
    {"failures", datapath_failures, METH_VARARGS, "How many reads and syncs of a tier's files failed so far."},
    {"syncs", datapath_syncs, METH_VARARGS, "(syncs that have ended, syncs under way) of a tier's files."},
    {"set_cache_tier", datapath_set_cache_tier, METH_VARARGS, "Count reads of shadows for this tier."},
    {"set_starved", datapath_set_starved, METH_VARARGS, "Set the eventfd that tells that no worker waits for requests."},
    {"forget", datapath_forget, METH_VARARGS, "Forget the class of a thread."},
    {"set_classifier", datapath_set_classifier, METH_O, "Set the function that tells a thread's class by its tid."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_datapath", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__datapath(void)
{
    PyObject *cache = PyImport_ImportModule("keigo.cache._chunks");
    chunks_type = cache ? (PyTypeObject *)PyObject_GetAttrString(cache, "Chunks") : NULL;
    Py_XDECREF(cache);
    if (!chunks_type)
        return NULL;
    /* Address space only: a page is used when a handle in it is. */
    slots = calloc(MAX_HANDLES, sizeof *slots);
    if (!slots)
        return PyErr_NoMemory();
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "MAX_HANDLES", MAX_HANDLES) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
