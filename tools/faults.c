/* Fails one call on files below a folder: preloaded by inject_faults.py.

   FAULT_FOLDER  calls on other files are passed on
   FAULT_KIND    "read" for calls that read a file, else all others
   FAULT_AT      which of the calls fails, from 1; 0 for none
   FAULT_ERRNO   how it fails
   FAULT_COUNT   file to which the number of calls is written at the end
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls, at = -1;
static int error, only_reads;
static const char *folder;

static void settings(void) {
    if (at >= 0) return;
    const char *text = getenv("FAULT_AT");
    at = text ? atol(text) : 0;
    text = getenv("FAULT_ERRNO");
    error = text ? atoi(text) : EIO;
    folder = getenv("FAULT_FOLDER");
    text = getenv("FAULT_KIND");
    only_reads = text && !strcmp(text, "read");
}

/* Whether this call is the one that fails. */
static int fails(int reads) {
    if (reads != only_reads) return 0;
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (number != at) return 0;
    errno = error;
    return 1;
}

static int below(int dir, const char *path) {
    settings();
    if (!folder || !path) return 0;
    char whole[PATH_MAX];
    if (path[0] != '/') {
        char base[PATH_MAX];
        if (dir == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = 0;
        }
        if (snprintf(whole, sizeof whole, "%s/%s", base, path) >= (int)sizeof whole) return 0;
        path = whole;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int is_below(int fd) {
    int saved = errno;
    char link[64], path[PATH_MAX];
    settings();
    if (!folder || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, last); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags, flags)
    return below(AT_FDCWD, path) && fails(0) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags, flags)
    return below(AT_FDCWD, path) && fails(0) ? -1 : real(path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags, flags)
    return below(dir, path) && fails(0) ? -1 : real(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags, flags)
    return below(dir, path) && fails(0) ? -1 : real(dir, path, flags, mode);
}
FILE *fopen(const char *path, const char *how) {
    REAL(fopen);
    return below(AT_FDCWD, path) && fails(0) ? NULL : real(path, how);
}
FILE *fopen64(const char *path, const char *how) {
    REAL(fopen64);
    return below(AT_FDCWD, path) && fails(0) ? NULL : real(path, how);
}
ssize_t write(int fd, const void *data, size_t count) {
    REAL(write);
    return is_below(fd) && fails(0) ? -1 : real(fd, data, count);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return is_below(fd) && fails(0) ? -1 : real(fd, parts, count);
}
ssize_t read(int fd, void *data, size_t count) {
    REAL(read);
    return is_below(fd) && fails(1) ? -1 : real(fd, data, count);
}
int fsync(int fd) {
    REAL(fsync);
    return is_below(fd) && fails(0) ? -1 : real(fd);
}
int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return is_below(fd) && fails(0) ? -1 : real(fd, size);
}
int rename(const char *old, const char *new) {
    REAL(rename);
    return below(AT_FDCWD, new) && fails(0) ? -1 : real(old, new);
}
int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat);
    return below(to, new) && fails(0) ? -1 : real(from, old, to, new);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return below(AT_FDCWD, path) && fails(0) ? -1 : real(path, mode);
}
int unlink(const char *path) {
    REAL(unlink);
    return below(AT_FDCWD, path) && fails(0) ? -1 : real(path);
}
int rmdir(const char *path) {
    REAL(rmdir);
    return below(AT_FDCWD, path) && fails(0) ? -1 : real(path);
}
void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    REAL(mmap);
    if (fd >= 0 && is_below(fd) && fails(0)) return MAP_FAILED;
    return real(address, size, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    if (fd >= 0 && is_below(fd) && fails(0)) return MAP_FAILED;
    return real(address, size, protection, flags, fd, offset);
}

__attribute__((destructor)) static void told(void) {
    const char *path = getenv("FAULT_COUNT");
    if (!path) return;
    FILE *file = fopen(path, "w");
    if (!file) return;
    fprintf(file, "%ld\n", calls);
    fclose(file);
}
