include(CMakeFindDependencyMacro)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/lramTargets.cmake)

# Where the loop is installed as sources, the compiler is that of the program on top.
get_filename_component(lram_loop_sources ${CMAKE_CURRENT_LIST_DIR}/../../../share/lram/loop ABSOLUTE)
if(CMAKE_CXX_COMPILER AND NOT TARGET lram::loop AND EXISTS ${lram_loop_sources})
  file(GLOB lram_loop_sources ${lram_loop_sources}/*.cpp)
  add_library(lram_loop STATIC EXCLUDE_FROM_ALL ${lram_loop_sources})
  target_compile_features(lram_loop PUBLIC cxx_std_17)
  target_link_libraries(lram_loop PUBLIC lram::lram)
  add_library(lram::loop ALIAS lram_loop)
endif()
