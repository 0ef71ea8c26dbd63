# What the device code may compute with: only operations that round to nearest, and none that the assembler may fuse or
# that flush denormals; vectors of four floats; nothing in local memory.
#
# -DPTX=file
file(STRINGS ${PTX} lines)
set(required ld.global.v4.f32 st.global.v4.f32 div.rn.f32 sqrt.rn.f32 fma.rn.f32 mul.rn.f32)
set(missing ${required})
foreach(line IN LISTS lines)
  if(NOT line MATCHES "^[ \t]+(@!?%p[0-9]+ )?([a-z][a-z0-9_.]*)")
    continue()
  endif()
  set(operation "${CMAKE_MATCH_2}")
  list(REMOVE_ITEM missing "${operation}")
  if(operation MATCHES "\\.(approx|ftz|full|local)(\\.|$)" OR operation MATCHES "^mad\\.([a-z]+\\.)?f32$"
     OR operation MATCHES "^(mul|add|sub)\\.f32$")
    message(SEND_ERROR "${PTX} has ${operation}")
  endif()
endforeach()
if(missing)
  message(SEND_ERROR "${PTX} has no ${missing}")
endif()
