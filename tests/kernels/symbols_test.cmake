# Every object of an instruction set defines its one entry and nothing else that a linker can see: it keeps one copy of a
# weak symbol for the whole program, and that one must not need AVX-512.
#
# -DNM=program -DOBJECTS=file,file...
string(REPLACE "," ";" OBJECTS "${OBJECTS}")
set(checked 0)
foreach(object IN LISTS OBJECTS)
  if(object MATCHES "_(avx2|avx512)\\.")
    math(EXPR checked "${checked} + 1")
    execute_process(COMMAND ${NM} --defined-only --extern-only --demangle ${object} OUTPUT_VARIABLE symbols
                    COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[^\n]+" symbols "${symbols}")
    set(entries 0)
    foreach(symbol IN LISTS symbols)
      string(REGEX REPLACE "^[0-9a-f]+ " "" symbol "${symbol}")
      if(symbol MATCHES "^T adamant::kernels::(Adam|Measure)Avx(2|512)\\(")
        math(EXPR entries "${entries} + 1")
      else()
        message(SEND_ERROR "${object} defines ${symbol}")
      endif()
    endforeach()
    if(NOT entries EQUAL 1)
      message(SEND_ERROR "${object} defines ${entries} entries instead of one")
    endif()
  endif()
endforeach()
if(checked EQUAL 0)
  message(FATAL_ERROR "no object of an instruction set in: ${OBJECTS}")
endif()
