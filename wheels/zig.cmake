# For any Linux and 64-bit processor, from any machine: zig brings Clang, libc++, which it links statically, and the
# symbols of every glibc. wheels/build.py says which (LRAM_MACHINE, LRAM_TARGET) and where zig is (LRAM_ZIG).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{LRAM_MACHINE})
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig-c++)
set(CMAKE_CXX_COMPILER_TARGET $ENV{LRAM_TARGET})
# stdio: nanobind 3.1 uses stderr, which neither libc++ nor the headers of the stable ABI bring by themselves
set(CMAKE_CXX_FLAGS_INIT "-include stdio.h")
# its archiver writes the index itself
foreach(of CMAKE CMAKE_CXX_COMPILER)
  set(${of}_AR ${CMAKE_CURRENT_LIST_DIR}/zig-ar)
  set(${of}_RANLIB :)
endforeach()
# nanobind would ask for thread-local storage in a way for which glibc before 2.40 spoils vector registers (its bug 31372)
set(NB_HAS_MTLS_GNU2 OFF CACHE BOOL "")
