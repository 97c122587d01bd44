/* Preloaded into a process: counts what it changes below one folder, and at the n-th change kills
 * the process or lets the change fail. Counted are calls of libc, so by Python and by libraries:
 * opening to write, writing, renaming, deleting, making folders, permissions, lengths, flushing.
 *
 * file_faults_arm(folder, n, fault, error):
 *   0 COUNT    nothing happens; file_faults_count() says how many there were
 *   1 BEFORE   SIGKILL before the n-th change
 *   2 AFTER    SIGKILL after it
 *   3 HALF     SIGKILL when half of the n-th change's bytes are written (BEFORE where it has none)
 *   4 FROM     every change from the n-th on fails with `error`; of a full disk those that need room
 *   5 ONCE     the n-th alone fails
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, BEFORE, AFTER, HALF, FROM, ONCE };
enum { NEEDS_ROOM = 1, DATA = 2 }; /* what a change is: takes space; carries bytes */
#define FDS 65536

static char root[PATH_MAX];
static size_t root_length;
static int armed, fault, error_number;
static long at, counted;
static char watched[FDS]; /* files below the folder that are open to write */

void file_faults_arm(const char *folder, long n, int which, int error) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    memset(watched, 0, sizeof watched);
    at = n, fault = which, error_number = error, counted = 0;
    armed = 1;
}

void file_faults_disarm(void) { armed = 0; }
long file_faults_count(void) { return counted; }

static const char *last_path; /* of the change that is asked about */
static int last_file = -1;

/* Says where the process is killed, on its standard error. */
static void end(void) {
    char link[64], path[PATH_MAX] = "";
    if (last_file >= 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", last_file);
        ssize_t n = readlink(link, path, sizeof path - 1);
        path[n < 0 ? 0 : n] = 0;
    }
    dprintf(2, "\n[killed at] %s\n", last_file >= 0 ? path : last_path);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int below(int dirfd, const char *path) {
    char whole[2 * PATH_MAX], folder[PATH_MAX], link[64];
    if (!armed || !path) return 0;
    last_path = path, last_file = -1;
    if (path[0] == '/') return !strncmp(path, root, root_length);
    if (dirfd == AT_FDCWD) {
        if (!getcwd(folder, sizeof folder)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t n = readlink(link, folder, sizeof folder - 1);
        if (n < 0) return 0;
        folder[n] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", folder, path);
    return !strncmp(whole, root, root_length);
}

static int is_watched(int fd) {
    if (!armed || fd < 0 || fd >= FDS || !watched[fd]) return 0;
    last_file = fd;
    return 1;
}

/* Whether this change is the one: 0 go on, 1 it fails, 2 kill after it, 3 kill half way. */
static int next_change(int kind) {
    int space = error_number == ENOSPC || error_number == EDQUOT;
    int can_fail = error_number == EIO ? kind & DATA : !space || kind & NEEDS_ROOM;
    if (fault >= FROM && !can_fail) return 0;
    long n = __sync_add_and_fetch(&counted, 1);
    if (fault == FROM ? n < at : n != at) return 0;
    switch (fault) {
    case BEFORE: end();
    case AFTER: return 2;
    case HALF:
        if (!(kind & DATA)) end();
        return 3;
    case FROM:
    case ONCE: errno = error_number; return 1;
    }
    return 0;
}

#define CHANGE(is_ours, kind, failed, call) \
    int todo = (is_ours) ? next_change(kind) : 0; \
    if (todo == 1) return failed; \
    __typeof__(call) result = call; \
    if (todo == 2) end(); \
    return result

static int opened(int dirfd, const char *path, int flags, mode_t mode) {
    REAL(int, "openat64", int, const char *, int, ...);
    int ours = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && below(dirfd, path);
    int is_new = ours && flags & O_CREAT && faccessat(dirfd, path, F_OK, 0);
    int todo = ours ? next_change(is_new ? NEEDS_ROOM : 0) : 0;
    if (todo == 1) return -1;
    int fd = real(dirfd, path, flags, mode);
    if (todo == 2) end();
    if (fd >= 0 && fd < FDS) watched[fd] = ours;
    return fd;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(AT_FDCWD, path, flags, mode);
}
int openat(int dirfd, const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(dirfd, path, flags, mode);
}
int openat64(int dirfd, const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(dirfd, path, flags, mode);
}

int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd < FDS) watched[fd] = 0;
    return real(fd);
}

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int todo = is_watched(fd) ? next_change(NEEDS_ROOM | DATA) : 0;
    if (todo == 1) return -1;
    ssize_t done = real(fd, data, todo == 3 ? n / 2 : n);
    if (todo >= 2) end();
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    int todo = is_watched(fd) ? next_change(NEEDS_ROOM | DATA) : 0;
    if (todo == 1) return -1;
    ssize_t done = real(fd, data, todo == 3 ? n / 2 : n, offset);
    if (todo >= 2) end();
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    int todo = is_watched(fd) ? next_change(NEEDS_ROOM | DATA) : 0;
    if (todo == 1) return -1;
    ssize_t done = real(fd, parts, todo == 3 ? n / 2 : n);
    if (todo >= 2) end();
    return done;
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t n) {
    REAL(ssize_t, "sendfile64", int, int, off_t *, size_t);
    CHANGE(is_watched(out), NEEDS_ROOM | DATA, -1, real(out, in, offset, n));
}
ssize_t sendfile(int out, int in, off_t *offset, size_t n) {
    return sendfile64(out, in, offset, n);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    CHANGE(below(AT_FDCWD, to), 0, -1, real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    CHANGE(below(b, to), 0, -1, real(a, from, b, to));
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    CHANGE(below(AT_FDCWD, path), 0, -1, real(path));
}
int unlinkat(int dirfd, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    CHANGE(below(dirfd, path), 0, -1, real(dirfd, path, flags));
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    CHANGE(below(AT_FDCWD, path), 0, -1, real(path));
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    CHANGE(below(AT_FDCWD, path), NEEDS_ROOM, -1, real(path, mode));
}
int mkdirat(int dirfd, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    CHANGE(below(dirfd, path), NEEDS_ROOM, -1, real(dirfd, path, mode));
}
int chmod(const char *path, mode_t mode) {
    REAL(int, "chmod", const char *, mode_t);
    CHANGE(below(AT_FDCWD, path), 0, -1, real(path, mode));
}
int fchmod(int fd, mode_t mode) {
    REAL(int, "fchmod", int, mode_t);
    CHANGE(is_watched(fd), 0, -1, real(fd, mode));
}
int fchmodat(int dirfd, const char *path, mode_t mode, int flags) {
    REAL(int, "fchmodat", int, const char *, mode_t, int);
    CHANGE(below(dirfd, path), 0, -1, real(dirfd, path, mode, flags));
}
int ftruncate64(int fd, off_t length) {
    REAL(int, "ftruncate64", int, off_t);
    CHANGE(is_watched(fd), 0, -1, real(fd, length));
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
int fsync(int fd) {
    REAL(int, "fsync", int);
    CHANGE(is_watched(fd), DATA, -1, real(fd));
}
