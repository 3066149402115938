/*
 * Notes every pread of a process in the file that KEIGO_BENCH_TRACE names: preloaded into the one that is measured.
 *
 *     u64: how many reads there were; then 32 bytes for each, as far as the file has room:
 *     u64 when it began (ns, CLOCK_MONOTONIC), u64 inode, u64 offset, u32 bytes, u32 how long it took (ns, at most)
 *
 * Little-endian. The file is made, with its size, by whoever reads it, and is shared memory: it outlives a kill.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct read {
    uint64_t when, ino, offset;
    uint32_t size, took;
};

static _Atomic uint64_t *count;
static struct read *reads;
static uint64_t room;
static ssize_t (*next)(int, void *, size_t, off_t);

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

__attribute__((constructor)) static void begin(void)
{
    next = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
    const char *path = getenv("KEIGO_BENCH_TRACE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    struct stat status;
    if (fd < 0)
        return;
    if (!fstat(fd, &status) && status.st_size > (off_t)sizeof *count) {
        void *all = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (all != MAP_FAILED) {
            room = ((uint64_t)status.st_size - sizeof *count) / sizeof *reads;
            reads = (struct read *)((char *)all + sizeof *count);
            count = all;
        }
    }
    close(fd);
}

ssize_t pread64(int fd, void *to, size_t size, off_t offset)
{
    uint64_t began = count ? now() : 0;
    ssize_t got = next(fd, to, size, offset);
    struct stat status;
    if (count && got > 0 && !fstat(fd, &status) && S_ISREG(status.st_mode)) {
        uint64_t took = now() - began, place = atomic_fetch_add(count, 1);
        if (place < room)
            reads[place] = (struct read){began, status.st_ino, (uint64_t)offset, (uint32_t)got,
                                         took < UINT32_MAX ? (uint32_t)took : UINT32_MAX};
    }
    return got;
}

ssize_t pread(int fd, void *to, size_t size, off_t offset)
{
    return pread64(fd, to, size, offset);
}
