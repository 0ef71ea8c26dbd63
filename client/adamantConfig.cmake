# The adamant package: adamant::client, and adamant::mocks where GoogleTest is found.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
find_dependency(Protobuf)
find_dependency(absl)
find_dependency(gRPC)
include(${CMAKE_CURRENT_LIST_DIR}/adamantTargets.cmake)

find_package(GTest QUIET)
if(GTest_FOUND)
  include(${CMAKE_CURRENT_LIST_DIR}/adamantMocksTargets.cmake OPTIONAL)
endif()
