/* Preloaded into a program, makes system calls on some files fail, or last. The environment says which:
 *
 *   FAULT_CALL   read, write or sync
 *   FAULT_PATH   part of the path of the files
 *   FAULT_CALLS  so many calls do as usual, or
 *   FAULT_BYTES  so many bytes
 *   FAULT_ERRNO  the error of those after, or
 *   FAULT_MS     how long they last
 *   FAULT_FIRED  a file to make then, so that a test sees that it tested something
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_ullong calls, bytes;

static unsigned long long number(const char *name) {
  const char *text = getenv(name);
  return text ? strtoull(text, NULL, 10) : 0;
}

/* Whether the file is one that is meant. */
static int meant(const char *call, int fd) {
  const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH");
  char link[64], path[4096];
  if (!wanted || !part || strcmp(wanted, call)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long len = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
  if (len < 0) return 0;
  path[len] = 0;
  return strstr(path, part) != NULL;
}

/* How many of `len` bytes the call may deal with; none when it is to fail with errno. */
static long allowed(const char *call, int fd, size_t len) {
  if (!meant(call, fd)) return (long)len;
  if (getenv("FAULT_BYTES")) {
    unsigned long long limit = number("FAULT_BYTES"), before = atomic_fetch_add(&bytes, len);
    if (before + len <= limit) return (long)len;
    if (before < limit) return (long)(limit - before);
  } else if (atomic_fetch_add(&calls, 1) < number("FAULT_CALLS")) {
    return (long)len;
  }
  const char *fired = getenv("FAULT_FIRED");
  if (fired) {
    long made = syscall(SYS_openat, AT_FDCWD, fired, O_WRONLY | O_CREAT, 0666);
    if (made >= 0) syscall(SYS_close, made);
  }
  unsigned long long ms = number("FAULT_MS");
  if (ms) {
    struct timespec left = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left)) continue; /* a signal is no end of it */
    return (long)len;
  }
  errno = (int)number("FAULT_ERRNO");
  return -1;
}

ssize_t pread64(int fd, void *out, size_t len, off64_t offset) {
  long some = allowed("read", fd, len);
  return some < 0 ? -1 : syscall(SYS_pread64, fd, out, (size_t)some, offset);
}

ssize_t pread(int fd, void *out, size_t len, off_t offset) { return pread64(fd, out, len, offset); }

ssize_t write(int fd, const void *data, size_t len) {
  long some = allowed("write", fd, len);
  return some < 0 ? -1 : syscall(SYS_write, fd, data, (size_t)some);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (!meant("write", fd)) return syscall(SYS_writev, fd, parts, count);
  return count ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0;
}

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t offset) {
  long some = allowed("write", fd, len);
  return some < 0 ? -1 : syscall(SYS_pwrite64, fd, data, (size_t)some, offset);
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t offset) { return pwrite64(fd, data, len, offset); }

int fsync(int fd) { return allowed("sync", fd, 1) < 0 ? -1 : (int)syscall(SYS_fsync, fd); }

int fdatasync(int fd) { return allowed("sync", fd, 1) < 0 ? -1 : (int)syscall(SYS_fdatasync, fd); }
