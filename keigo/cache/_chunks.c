/* The Python type of chunks.h, for the cache, which changes it, and for drivers that are not the data path. */
#define _GNU_SOURCE
#include "chunks.h"

#include <fcntl.h>
#include <stdlib.h>

#define MOST_CHUNKS ((uint64_t)1 << 31)

static uint64_t words_of(const struct chunks *chunks)
{
    return ((uint64_t)chunks->count + 63) / 64;
}

static PyObject *chunks_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    unsigned long long size;
    unsigned int shift;
    if (kwargs && PyDict_GET_SIZE(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "Chunks takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "KI", &size, &shift))
        return NULL;
    if (!size || shift < 12 || shift > 30 || (size - 1) >> shift >= MOST_CHUNKS) {
        PyErr_SetString(PyExc_ValueError, "no such chunks");
        return NULL;
    }
    struct chunks *self = (struct chunks *)type->tp_alloc(type, 0); /* zeros */
    if (!self)
        return NULL;
    self->size = size;
    self->shift = shift;
    self->count = (uint32_t)(((size - 1) >> shift) + 1);
    self->shadow = self->direct = -1;
    uint64_t words = words_of(self);
    self->present = calloc(words, sizeof *self->present);
    self->doubtful = calloc(words, sizeof *self->doubtful);
    self->heat = calloc(self->count, sizeof *self->heat);
    if (!self->present || !self->doubtful || !self->heat) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void chunks_dealloc(struct chunks *self)
{
    if (self->shadow >= 0)
        close(self->shadow);
    if (self->direct >= 0)
        close(self->direct);
    free((void *)self->present);
    free((void *)self->doubtful);
    free((void *)self->heat);
    Py_XDECREF(self->verify);
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Put a file behind a descriptor that others may be reading by its number. 0, or -1 with an exception. */
static int put_behind(_Atomic int *number, int fd)
{
    int known = atomic_load(number);
    int got = known < 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : dup3(fd, known, O_CLOEXEC);
    if (got < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    atomic_store(number, got);
    return 0;
}

static PyObject *chunks_attach(struct chunks *self, PyObject *args)
{
    int fd, direct;
    if (!PyArg_ParseTuple(args, "ii", &fd, &direct))
        return NULL;
    if (atomic_load(&self->cached)) {
        PyErr_SetString(PyExc_ValueError, "chunks are cached in another shadow");
        return NULL;
    }
    if (put_behind(&self->shadow, fd))
        return NULL;
    /* Where there is none for this one, the number stays, on the same file: a read by it fails, and goes on buffered. */
    if ((direct >= 0 || self->direct >= 0) && put_behind(&self->direct, direct >= 0 ? direct : fd))
        return NULL;
    Py_RETURN_NONE;
}

static int index_argument(struct chunks *self, PyObject *argument, uint64_t *index)
{
    *index = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return -1;
    if (*index < self->count)
        return 0;
    PyErr_SetString(PyExc_IndexError, "no such chunk");
    return -1;
}

static int set_bit(_Atomic uint64_t *bits, uint64_t index)
{
    uint64_t bit = (uint64_t)1 << index % 64;
    return !(atomic_fetch_or(&bits[index / 64], bit) & bit);
}

static int clear_bit(_Atomic uint64_t *bits, uint64_t index)
{
    uint64_t bit = (uint64_t)1 << index % 64;
    return (atomic_fetch_and(&bits[index / 64], ~bit) & bit) != 0;
}

static PyObject *chunks_fill(struct chunks *self, PyObject *argument)
{
    uint64_t index;
    if (index_argument(self, argument, &index))
        return NULL;
    if (!atomic_load(&self->size))
        Py_RETURN_FALSE;
    int doubted = clear_bit(self->doubtful, index);
    if (set_bit(self->present, index) && !doubted)
        atomic_fetch_add(&self->cached, 1);
    Py_RETURN_TRUE;
}

static PyObject *chunks_doubt(struct chunks *self, PyObject *argument)
{
    uint64_t index;
    if (index_argument(self, argument, &index))
        return NULL;
    if (atomic_load(&self->size) && !chunks_bit(self->present, index) && set_bit(self->doubtful, index))
        atomic_fetch_add(&self->cached, 1);
    Py_RETURN_NONE;
}

static PyObject *chunks_evict(struct chunks *self, PyObject *argument)
{
    uint64_t index;
    if (index_argument(self, argument, &index))
        return NULL;
    int was = clear_bit(self->present, index) | clear_bit(self->doubtful, index);
    if (was)
        atomic_fetch_sub(&self->cached, 1);
    atomic_fetch_add(&self->version, 1);
    return PyBool_FromLong(was);
}

static void forget_all(struct chunks *self)
{
    for (uint64_t word = 0; word < words_of(self); word++) {
        atomic_store(&self->present[word], 0);
        atomic_store(&self->doubtful[word], 0);
    }
    atomic_store(&self->cached, 0);
    atomic_fetch_add(&self->version, 1);
}

static PyObject *chunks_set_verify(struct chunks *self, PyObject *verify)
{
    Py_XSETREF(self->verify, Py_NewRef(verify));
    Py_RETURN_NONE;
}

static PyObject *chunks_clear(struct chunks *self, PyObject *unused)
{
    forget_all(self);
    Py_CLEAR(self->verify);
    Py_RETURN_NONE;
}

static PyObject *chunks_end(struct chunks *self, PyObject *unused)
{
    atomic_store(&self->size, 0);
    forget_all(self);
    Py_CLEAR(self->verify);
    Py_RETURN_NONE;
}

static PyObject *chunks_is_present(struct chunks *self, PyObject *argument)
{
    uint64_t index;
    if (index_argument(self, argument, &index))
        return NULL;
    return PyBool_FromLong(chunks_bit(self->present, index));
}

static PyObject *chunks_is_doubtful(struct chunks *self, PyObject *argument)
{
    uint64_t index;
    if (index_argument(self, argument, &index))
        return NULL;
    return PyBool_FromLong(chunks_bit(self->doubtful, index));
}

static PyObject *bitmap(const struct chunks *self, _Atomic uint64_t *bits)
{
    PyObject *found = PyBytes_FromStringAndSize(NULL, ((Py_ssize_t)self->count + 7) / 8);
    if (!found)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(found);
    for (uint64_t byte = 0; byte < ((uint64_t)self->count + 7) / 8; byte++)
        to[byte] = (unsigned char)(atomic_load_explicit(&bits[byte / 8], memory_order_relaxed) >> byte % 8 * 8);
    return found;
}

static PyObject *chunks_present(struct chunks *self, PyObject *unused)
{
    return bitmap(self, self->present);
}

static PyObject *chunks_doubtful(struct chunks *self, PyObject *unused)
{
    return bitmap(self, self->doubtful);
}

static PyObject *chunks_heat(struct chunks *self, PyObject *unused)
{
    PyObject *found = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)self->count * 2);
    if (!found)
        return NULL;
    uint16_t *to = (uint16_t *)(void *)PyBytes_AS_STRING(found);
    for (uint32_t index = 0; index < self->count; index++)
        to[index] = (uint16_t)heat_value(atomic_load_explicit(&self->heat[index], memory_order_relaxed));
    return found;
}

static PyObject *chunks_set_heat(struct chunks *self, PyObject *args)
{
    const uint16_t *from;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "y#", &from, &size))
        return NULL;
    if (size != (Py_ssize_t)self->count * 2) {
        PyErr_SetString(PyExc_ValueError, "not a heat of each chunk");
        return NULL;
    }
    for (uint32_t index = 0; index < self->count; index++)
        atomic_store_explicit(&self->heat[index], heat_of(from[index]), memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *chunks_halve(struct chunks *self, PyObject *unused)
{
    int warm = 0;
    for (uint32_t index = 0; index < self->count; index++) {
        unsigned heat = heat_value(atomic_load_explicit(&self->heat[index], memory_order_relaxed));
        if (heat)
            atomic_store_explicit(&self->heat[index], heat_of(heat / 2), memory_order_relaxed);
        warm |= heat > 1;
    }
    return PyBool_FromLong(warm);
}

static PyObject *chunks_counts(struct chunks *self, PyObject *unused)
{
    return Py_BuildValue("KKKKKKK", (unsigned long long)self->hits, (unsigned long long)self->hit_bytes,
                         (unsigned long long)self->misses, (unsigned long long)self->miss_bytes,
                         (unsigned long long)self->useful, (unsigned long long)self->wanted,
                         (unsigned long long)self->errors);
}

struct home {
    int fd;
};

static ssize_t read_either(void *of, struct chunks *from, char *to, size_t size, size_t room, uint64_t offset)
{
    if (from)
        return chunks_read_shadow(from, to, size, room, offset);
    size_t done = 0;
    while (done < size) {
        ssize_t got = pread(((struct home *)of)->fd, to + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (!got)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

static PyObject *chunks_read_method(struct chunks *self, PyObject *args)
{
    struct home home;
    Py_ssize_t size;
    unsigned long long offset;
    if (!PyArg_ParseTuple(args, "inK", &home.fd, &size, &offset))
        return NULL;
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "a negative size");
        return NULL;
    }
    /* Bytes of our own, aligned, so that the shadow can be read past the page cache. */
    size_t room = ((size_t)size + CHUNKS_ALIGNMENT) & ~(size_t)(CHUNKS_ALIGNMENT - 1);
    void *memory;
    if (posix_memalign(&memory, CHUNKS_ALIGNMENT, room))
        return PyErr_NoMemory();
    size_t served;
    PyThreadState *saved = PyEval_SaveThread();
    ssize_t got = chunks_read(self, read_either, &home, memory, (size_t)size, offset, &served, &saved);
    int error = errno;
    PyEval_RestoreThread(saved);
    PyObject *answer = NULL;
    if (got < 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        chunks_count(self, (size_t)got, served);
        answer = Py_BuildValue("y#n", memory, (Py_ssize_t)got, (Py_ssize_t)served);
    }
    free(memory);
    return answer;
}

static PyObject *chunks_warm_method(struct chunks *self, PyObject *args)
{
    unsigned long long offset;
    Py_ssize_t got, served;
    if (!PyArg_ParseTuple(args, "Knn", &offset, &got, &served))
        return NULL;
    if (got > 0)
        chunks_warm(self, offset, (size_t)got, (size_t)served);
    Py_RETURN_NONE;
}

static PyObject *get_count(struct chunks *self, void *unused)
{
    return PyLong_FromUnsignedLong(self->count);
}

static PyObject *get_size(struct chunks *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_load(&self->size));
}

static PyObject *get_cached(struct chunks *self, void *unused)
{
    return PyLong_FromUnsignedLong(atomic_load(&self->cached));
}

static PyMethodDef methods[] = {
    {"attach", (PyCFunction)chunks_attach, METH_VARARGS, "Read cached chunks by copies of these descriptors."},
    {"set_verify", (PyCFunction)chunks_set_verify, METH_O, "Called with the number of a doubtful chunk that is read."},
    {"fill", (PyCFunction)chunks_fill, METH_O, "A chunk is in the shadow, to be trusted; False: the file is another."},
    {"doubt", (PyCFunction)chunks_doubt, METH_O, "A chunk is in the shadow if its checksum says so."},
    {"evict", (PyCFunction)chunks_evict, METH_O, "A chunk is about to go; whether it was there."},
    {"clear", (PyCFunction)chunks_clear, METH_NOARGS, "All chunks are about to go."},
    {"end", (PyCFunction)chunks_end, METH_NOARGS, "The file is about to change or has gone: no chunk from now on."},
    {"is_present", (PyCFunction)chunks_is_present, METH_O, "Whether a chunk is in the shadow, and trusted."},
    {"is_doubtful", (PyCFunction)chunks_is_doubtful, METH_O, "Whether a chunk is in the shadow, and not looked at yet."},
    {"present", (PyCFunction)chunks_present, METH_NOARGS, "Bitmap of trusted chunks, the first in the lowest bit."},
    {"doubtful", (PyCFunction)chunks_doubtful, METH_NOARGS, "Bitmap of chunks that were not looked at yet."},
    {"heat", (PyCFunction)chunks_heat, METH_NOARGS, "Foreground reads of each chunk, decayed: 16-bit numbers."},
    {"set_heat", (PyCFunction)chunks_set_heat, METH_VARARGS, "Set what `heat` returns."},
    {"halve", (PyCFunction)chunks_halve, METH_NOARGS, "Halve the heat; whether any is left."},
    {"counts", (PyCFunction)chunks_counts, METH_NOARGS,
     "(hits, their bytes, misses, theirs, foreground reads that were hits, all of them, errors) so far."},
    {"read", (PyCFunction)chunks_read_method, METH_VARARGS, "pread of (fd, size, offset): (bytes, how many were cached)."},
    {"warm", (PyCFunction)chunks_warm_method, METH_VARARGS, "A foreground read was at (offset, bytes, cached bytes)."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"count", (getter)get_count, NULL, "How many chunks the file has.", NULL},
    {"size", (getter)get_size, NULL, "Bytes of the file; 0: it is another file now.", NULL},
    {"cached", (getter)get_cached, NULL, "How many chunks are in the shadow.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot type_slots[] = {
    {Py_tp_new, chunks_new},
    {Py_tp_dealloc, chunks_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_doc, "Chunks(size, shift): see chunks.h."},
    {0, NULL},
};

static PyType_Spec type_spec = {
    .name = "keigo.cache._chunks.Chunks",
    .basicsize = sizeof(struct chunks),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = type_slots,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_chunks", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__chunks(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = PyType_FromSpec(&type_spec);
    if (!module || !type || PyModule_AddObjectRef(module, "Chunks", type) < 0) {
        Py_XDECREF(module);
        module = NULL;
    }
    Py_XDECREF(type);
    return module;
}
