/*
 * Which chunks of one file are cached, and how hot each is: shared by the data path and by Python.
 *
 * Who holds what. One thread at a time changes which chunks there are (the cache, under its lock); any number read,
 * without a lock:
 *
 *     reader:  v = version;  test the chunk's bit;  read the shadow;  version == v?  else read the home
 *     cache:   clear the bit;  version++;  then punch the hole, or cut the shadow
 *
 * so what was read while a chunk went away is thrown away, even if the chunk has come back meanwhile. The two
 * descriptors stay open as long as the object lives and are replaced by dup2: a number is never another file's. Bits are
 * set after the bytes are in the shadow. Counters are atomic and only grow; heat may lose a count.
 */
#ifndef KEIGO_CHUNKS_H
#define KEIGO_CHUNKS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

#define CHUNKS_ALIGNMENT 4096
#define CHUNKS_STREAMS 4
#define CHUNKS_STREAM_GAP (2 * CHUNKS_ALIGNMENT) /* blocks are no whole pages: a reader of the next one overlaps */
#define CHUNKS_STREAM_LONG 4                     /* chunks; who has read so many in a row is scanning */

struct stream {
    _Atomic uint64_t end; /* of the last read */
    _Atomic uint64_t run; /* bytes read in a row */
};

struct chunks {
    PyObject_HEAD
    _Atomic uint64_t size; /* of the file; 0: it is not the same file any more, all is read at home */
    unsigned shift;
    uint32_t count;
    _Atomic int shadow; /* buffered; -1: there never was one */
    _Atomic int direct; /* O_DIRECT; -1: none */
    _Atomic uint64_t version;
    _Atomic uint32_t cached;   /* bits set in `present` or in `doubtful`: none, none to look at */
    _Atomic uint64_t *present; /* a bit per chunk */
    _Atomic uint64_t *doubtful; /* a bit per chunk: in the shadow, if its checksum says so */
    _Atomic uint8_t *heat; /* a count each, as heat_value has it */
    struct stream streams[CHUNKS_STREAMS];
    _Atomic unsigned next_stream;
    _Atomic uint64_t hits, hit_bytes, misses, miss_bytes; /* of all threads */
    _Atomic uint64_t useful, wanted; /* foreground reads that were hits, and all */
    _Atomic uint64_t errors;         /* reads of the shadow that failed or were short */
    PyObject *verify;                /* callable: index of a doubtful chunk; sets or clears its bits. Under the GIL */
};

/* Reads part of a file: at home, as pread(2), where `from` is NULL, else by chunks_read_shadow. */
typedef ssize_t (*chunks_reader)(void *of, struct chunks *from, char *to, size_t size, size_t room, uint64_t offset);

static inline int chunks_bit(_Atomic uint64_t *bits, uint64_t index)
{
    return (int)(atomic_load_explicit(&bits[index / 64], memory_order_acquire) >> index % 64 & 1);
}

/* Have a doubtful chunk looked at. Takes the GIL, which the caller gave up as `*saved`. */
static inline void chunks_settle(struct chunks *chunks, uint64_t index, PyThreadState **saved)
{
    PyEval_RestoreThread(*saved);
    PyObject *verify = chunks->verify;
    if (verify) {
        Py_INCREF(verify);
        PyObject *answer = PyObject_CallFunction(verify, "K", (unsigned long long)index);
        if (!answer)
            PyErr_WriteUnraisable(verify);
        Py_XDECREF(answer);
        Py_DECREF(verify);
    }
    *saved = PyEval_SaveThread();
}

static inline int chunks_has(struct chunks *chunks, uint64_t index, PyThreadState **saved)
{
    if (chunks_bit(chunks->present, index))
        return 1;
    if (!chunks_bit(chunks->doubtful, index))
        return 0;
    chunks_settle(chunks, index, saved);
    return chunks_bit(chunks->present, index);
}

/* Read from the shadow: `size` bytes, for which `to` has room up to a multiple of the alignment; -1 if not so. */
static inline ssize_t chunks_read_shadow(struct chunks *chunks, char *to, size_t size, size_t room, uint64_t offset)
{
    int direct = atomic_load_explicit(&chunks->direct, memory_order_relaxed);
    size_t whole = (size + CHUNKS_ALIGNMENT - 1) & ~(size_t)(CHUNKS_ALIGNMENT - 1);
    if (direct >= 0 && whole <= room && offset % CHUNKS_ALIGNMENT == 0 && (uintptr_t)to % CHUNKS_ALIGNMENT == 0) {
        ssize_t got = pread(direct, to, whole, (off_t)offset);
        if (got == (ssize_t)whole)
            return (ssize_t)size;
        if (got < 0 && errno != EINVAL && errno != EINTR)
            return -1;
    }
    int fd = atomic_load_explicit(&chunks->shadow, memory_order_relaxed);
    size_t done = 0;
    while (done < size) {
        ssize_t got = pread(fd, to + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        done += (size_t)got;
    }
    return (ssize_t)size;
}

/*
 * Read part of a file, each chunk from the shadow or from home. As pread(2), but short only at the end of the file.
 * `*served` is set to how many of the bytes came from the shadow.
 */
static inline ssize_t chunks_read(struct chunks *chunks, chunks_reader reader, void *of, char *to, size_t size,
                                  uint64_t offset, size_t *served, PyThreadState **saved)
{
    uint64_t end = atomic_load_explicit(&chunks->size, memory_order_acquire);
    *served = 0;
    if (!atomic_load_explicit(&chunks->cached, memory_order_acquire) || offset >= end)
        return reader(of, NULL, to, size, size, offset);
    uint64_t stop = offset + size < end ? offset + size : end;
    size_t done = 0;
    while (offset + done < stop) {
        uint64_t at = offset + done, index = at >> chunks->shift, until = (index + 1) << chunks->shift;
        uint64_t version = atomic_load_explicit(&chunks->version, memory_order_acquire);
        int has = chunks_has(chunks, index, saved);
        while (until < stop && chunks_has(chunks, until >> chunks->shift, saved) == has)
            until += (uint64_t)1 << chunks->shift;
        size_t part = (size_t)((until < stop ? until : stop) - at);
        if (has) {
            ssize_t got = reader(of, chunks, to + done, part, size - done, at);
            atomic_thread_fence(memory_order_acquire);
            if (atomic_load_explicit(&chunks->version, memory_order_relaxed) == version) {
                if (got == (ssize_t)part) {
                    done += part;
                    *served += part;
                    continue;
                }
                atomic_fetch_add_explicit(&chunks->errors, 1, memory_order_relaxed);
            }
        }
        /* The last part with all that was asked for: whole blocks, which direct I/O wants, end beyond the file's end. */
        size_t ask = until >= stop ? size - done : part;
        ssize_t got = reader(of, NULL, to + done, ask, ask, at);
        if (got < 0)
            return -1; /* also after some bytes: the kernel takes a short answer for the end of the file */
        done += (size_t)got;
        if ((size_t)got < ask)
            break;
    }
    return (ssize_t)done;
}

/* Count a read; before its answer. */
static inline void chunks_count(struct chunks *chunks, size_t got, size_t served)
{
    if (served) {
        atomic_fetch_add_explicit(&chunks->hit_bytes, served, memory_order_relaxed);
        atomic_fetch_add_explicit(&chunks->hits, served == got, memory_order_relaxed);
    }
    if (served < got) {
        atomic_fetch_add_explicit(&chunks->miss_bytes, got - served, memory_order_relaxed);
        atomic_fetch_add_explicit(&chunks->misses, 1, memory_order_relaxed);
    }
}

/*
 * A count in a byte: exact up to 63, then by steps of 2, 4, ... 64, which are taken as rarely as they are long; so it is
 * right on average, and off by a seventh as a rule. Two bytes would be more than a chunk's whole share of memory.
 */
#define HEAT_MOST 4032u

static inline unsigned heat_value(uint8_t heat)
{
    unsigned exponent = heat >> 5, mantissa = heat & 31;
    return exponent ? (32 + mantissa) << (exponent - 1) : mantissa;
}

static inline uint8_t heat_of(unsigned value)
{
    unsigned exponent = 0;
    if (value > HEAT_MOST)
        value = HEAT_MOST;
    while (value >> exponent >= 64)
        exponent++;
    return value < 32 ? (uint8_t)value : (uint8_t)((exponent + 1) << 5 | ((value >> exponent) - 32));
}

static inline uint8_t heat_more(uint8_t heat)
{
    static _Thread_local uint32_t dice = 2463534242u; /* xorshift32 (Marsaglia, 2003) */
    unsigned exponent = heat >> 5;
    if (heat == UINT8_MAX)
        return heat;
    if (exponent > 1) {
        dice ^= dice << 13;
        dice ^= dice >> 17;
        dice ^= dice << 5;
        if (dice >> (33 - exponent))
            return heat;
    }
    return (uint8_t)(heat + 1);
}

/*
 * A foreground read heats the chunks that it touches. One that goes on where another ended heats only those that it
 * enters, and none once so much was read in a row that it is a scan: what comes next in a scan is no news, and would
 * be asked for once.
 */
static inline void chunks_warm(struct chunks *chunks, uint64_t offset, size_t got, size_t served)
{
    if (!got || !atomic_load_explicit(&chunks->size, memory_order_relaxed))
        return;
    atomic_fetch_add_explicit(&chunks->wanted, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&chunks->useful, served == got, memory_order_relaxed);
    uint64_t end = offset + got, first = offset >> chunks->shift, last = (end - 1) >> chunks->shift;
    struct stream *stream = NULL;
    for (int i = 0; i < CHUNKS_STREAMS && !stream; i++) {
        uint64_t before = atomic_load_explicit(&chunks->streams[i].end, memory_order_relaxed);
        if (!before || offset > before || before - offset > CHUNKS_STREAM_GAP || end < before)
            continue;
        /* The same page once more: it holds several blocks of a scan, or is a hot one, which nobody scans. */
        uint64_t run = atomic_load_explicit(&chunks->streams[i].run, memory_order_relaxed);
        if (end > before || run >= (uint64_t)CHUNKS_STREAM_LONG << chunks->shift)
            stream = &chunks->streams[i];
    }
    if (stream) {
        uint64_t before = atomic_load_explicit(&stream->end, memory_order_relaxed);
        uint64_t run = atomic_load_explicit(&stream->run, memory_order_relaxed) + (end - before);
        atomic_store_explicit(&stream->run, run, memory_order_relaxed);
        atomic_store_explicit(&stream->end, end, memory_order_relaxed);
        if (run >= (uint64_t)CHUNKS_STREAM_LONG << chunks->shift)
            return;
        uint64_t known = (before - 1) >> chunks->shift;
        if (first <= known)
            first = known + 1;
    } else {
        unsigned next = atomic_fetch_add_explicit(&chunks->next_stream, 1, memory_order_relaxed) % CHUNKS_STREAMS;
        atomic_store_explicit(&chunks->streams[next].run, got, memory_order_relaxed);
        atomic_store_explicit(&chunks->streams[next].end, end, memory_order_relaxed);
    }
    for (; first <= last && first < chunks->count; first++) {
        uint8_t heat = atomic_load_explicit(&chunks->heat[first], memory_order_relaxed);
        atomic_store_explicit(&chunks->heat[first], heat_more(heat), memory_order_relaxed);
    }
}

#endif
