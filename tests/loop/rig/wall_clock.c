// Preloaded, it lets another process set the wall clock of this one: CLOCK_REALTIME, and no other.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

// seconds that it is ahead, and how often it was read since
static volatile long* wall_clock = NULL;

__attribute__((constructor)) static void open_clock(void)
{
    const char* path = getenv("RIG_WALL_CLOCK");
    int file = path == NULL ? -1 : open(path, O_RDWR);
    if (file < 0)
        return;
    void* shared = mmap(NULL, 2 * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared != MAP_FAILED)
        wall_clock = shared;
}

int clock_gettime(clockid_t id, struct timespec* now)
{
    int result = (int)syscall(SYS_clock_gettime, id, now);
    if (id == CLOCK_REALTIME && wall_clock != NULL && wall_clock[0] != 0) {
        now->tv_sec += wall_clock[0];
        ++wall_clock[1];
    }
    return result;
}

int gettimeofday(struct timeval* now, void* zone)
{
    (void)zone;
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t* now)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now != NULL)
        *now = precise.tv_sec;
    return precise.tv_sec;
}
