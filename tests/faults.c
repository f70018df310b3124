/* Fails or ends a process at its n-th operation on files below a folder. Preloaded by faults.py.

   FAULT_UNDER    the folder
   FAULT_COUNTER  a file of 8 bytes: the operations so far, of all processes
   FAULT_AT       the operation that fails, from 1; 0 for none
   FAULT_ERRNO    its error; 0 to kill the process instead
   FAULT_LASTING  1 if all later operations fail too, as on a full disk

   Operations: open a file for writing or make a folder, write, sync, rename. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static _Atomic long *counter;
static const char *under;
static long at, number, lasting;

/* Returns whether this operation fails, with errno set. */
static int fails(const char *path) {
  if (!counter) {
    const char *file = getenv("FAULT_COUNTER");
    if (!file) return 0;
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = real_open(file, O_RDWR);
    if (fd < 0) return 0;
    under = getenv("FAULT_UNDER");
    at = atol(getenv("FAULT_AT"));
    number = atol(getenv("FAULT_ERRNO"));
    lasting = atol(getenv("FAULT_LASTING"));
    counter = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
  }
  if (!path || strncmp(path, under, strlen(under))) return 0;
  long now = ++*counter;
  if (!at || now < at || (now > at && !lasting)) return 0;
  if (!number) kill(getpid(), SIGKILL);
  errno = number;
  return 1;
}

static int fails_on(int fd) {
  char link[32], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                              \
  int name(const char *path, int flags, ...) {                  \
    REAL(name);                                                 \
    va_list rest;                                               \
    va_start(rest, flags);                                      \
    mode_t mode = va_arg(rest, mode_t);                         \
    va_end(rest);                                               \
    if ((flags & O_ACCMODE) != O_RDONLY && fails(path)) return -1; \
    return real(path, flags, mode);                             \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
  int name(int folder, const char *path, int flags, ...) {      \
    REAL(name);                                                 \
    va_list rest;                                               \
    va_start(rest, flags);                                      \
    mode_t mode = va_arg(rest, mode_t);                         \
    va_end(rest);                                               \
    if ((flags & O_ACCMODE) != O_RDONLY && fails(path)) return -1; \
    return real(folder, path, flags, mode);                     \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                             \
  FILE *name(const char *path, const char *mode) {              \
    REAL(name);                                                 \
    if (*mode != 'r' && fails(path)) return NULL;               \
    return real(path, mode);                                    \
  }
FOPEN(fopen)
FOPEN(fopen64)

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return fails(path) ? -1 : real(path, mode);
}

ssize_t write(int fd, const void *bytes, size_t count) {
  REAL(write);
  return fails_on(fd) ? -1 : real(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  return fails_on(fd) ? -1 : real(fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t place) {
  REAL(pwrite);
  return fails_on(fd) ? -1 : real(fd, bytes, count, place);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t place) {
  REAL(pwrite64);
  return fails_on(fd) ? -1 : real(fd, bytes, count, place);
}

size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file) {
  REAL(fwrite);
  return fails_on(fileno(file)) ? 0 : real(bytes, size, count, file);
}

int fflush(FILE *file) {
  REAL(fflush);
  return file && fails_on(fileno(file)) ? EOF : real(file);
}

int fsync(int fd) {
  REAL(fsync);
  return fails_on(fd) ? -1 : real(fd);
}

int rename(const char *from, const char *to) {
  REAL(rename);
  return fails(to) ? -1 : real(from, to);
}
