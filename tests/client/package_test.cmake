# What a stranger does: installs the client, builds the quickstart and a test with the mock on it, runs the test.
# -DBUILD_DIR, -DCONFIG, -DGENERATOR, -DSOURCE_DIR: this project's. -DWORK_DIR: emptied, and used.
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --component adamant_client --prefix ${WORK_DIR}/installed)

# Installed headers stand on their own.
file(GLOB_RECURSE headers ${WORK_DIR}/installed/include/adamant/*.h)
foreach(header ${headers})
  file(STRINGS ${header} private_includes REGEX "#include [\"<](client|proto|server|kernels)/")
  if(private_includes)
    message(FATAL_ERROR "${header}: ${private_includes}")
  endif()
endforeach()

foreach(project client/quickstart tests/client/package)
  run(${CMAKE_COMMAND} -S ${SOURCE_DIR}/${project} -B ${WORK_DIR}/${project} -G ${GENERATOR}
      -DCMAKE_PREFIX_PATH=${WORK_DIR}/installed -DCMAKE_BUILD_TYPE=Debug)
  run(${CMAKE_COMMAND} --build ${WORK_DIR}/${project})
endforeach()
run(${WORK_DIR}/tests/client/package/trainer_test)
