// Do these headers of Python fit the machine that is compiled for? What pyconfig.h says of it decides how Python's
// structs are laid out, and it was written on the machine that Python was built on. Compiled, and thrown away.
#include <Python.h>
#include <patchlevel.h>
#include <pthread.h>

#include <cstddef>
#include <ctime>

static_assert(PY_MAJOR_VERSION == 3 && PY_MINOR_VERSION == LRAM_PYTHON_MINOR, "headers of another Python");
static_assert(SIZEOF_VOID_P == sizeof(void*) && SIZEOF_SIZE_T == sizeof(std::size_t), "pointers");
static_assert(SIZEOF_INT == sizeof(int) && SIZEOF_LONG == sizeof(long) && SIZEOF_LONG_LONG == sizeof(long long),
              "integers");
static_assert(SIZEOF_WCHAR_T == sizeof(wchar_t) && SIZEOF__BOOL == sizeof(bool), "characters");
static_assert(SIZEOF_TIME_T == sizeof(std::time_t) && SIZEOF_PID_T == sizeof(pid_t), "times and processes");
static_assert(SIZEOF_PTHREAD_T == sizeof(pthread_t), "threads");
#ifdef ALIGNOF_MAX_ALIGN_T
static_assert(ALIGNOF_MAX_ALIGN_T == alignof(std::max_align_t), "alignment");
#endif
#if !defined(DOUBLE_IS_LITTLE_ENDIAN_IEEE754) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the order of bytes"
#endif
#if defined(Py_DEBUG) || defined(Py_TRACE_REFS) || defined(Py_STATS) || defined(Py_GIL_DISABLED)
#error "a debug, a statistics or a free-threaded Python: its objects have other fields"
#endif
