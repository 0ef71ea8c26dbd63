# Every object of an instruction set, isa_NAME, defines its table and nothing else that a linker can see, and calls no
# function but the C library's: a linker keeps one copy of a weak symbol for the whole program, and that one must not need
# AVX-512.
#
# -DNM=program -DOBJECTS=file,file...
string(REPLACE "," ";" OBJECTS "${OBJECTS}")

# The symbols that NM lists with `kind`, as lines.
function(list_symbols object kind result)
  execute_process(COMMAND ${NM} ${kind} --extern-only --demangle ${object} OUTPUT_VARIABLE symbols
                  COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" symbols "${symbols}")
  list(TRANSFORM symbols REPLACE "^[0-9a-f ]+ ([A-Za-z]) " "\\1 ")
  set(${result} "${symbols}" PARENT_SCOPE)
endfunction()

set(checked 0)
foreach(object IN LISTS OBJECTS)
  if(object MATCHES "/isa_[a-z0-9]+\\.")
    math(EXPR checked "${checked} + 1")
    list_symbols(${object} --defined-only defined)
    set(tables 0)
    foreach(symbol IN LISTS defined)
      if(symbol MATCHES "^[DR] adamant::kernels::k[A-Za-z0-9]+Kernels$")
        math(EXPR tables "${tables} + 1")
      else()
        message(SEND_ERROR "${object} defines ${symbol}")
      endif()
    endforeach()
    if(NOT tables EQUAL 1)
      message(SEND_ERROR "${object} defines ${tables} tables instead of one")
    endif()
    list_symbols(${object} --undefined-only undefined)
    foreach(symbol IN LISTS undefined)
      # __cpu_model is what __builtin_cpu_supports reads.
      if(NOT symbol MATCHES "^U (fmaf|memcpy|memset|__cpu_model|_GLOBAL_OFFSET_TABLE_)$")
        message(SEND_ERROR "${object} refers to ${symbol}")
      endif()
    endforeach()
  endif()
endforeach()
if(checked EQUAL 0)
  message(FATAL_ERROR "no object of an instruction set in: ${OBJECTS}")
endif()
