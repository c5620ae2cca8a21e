# Fails when an object compiled for the instruction set ISA defines a weak symbol outside the ISA's own namespace: the
# linker keeps one definition of each, and might run it on processors without the instructions.
#
#     cmake -DNM=nm -DISA=avx512 "-DOBJECTS=a.o;b.o" -P check_isa_symbols.cmake
if(NOT OBJECTS)
    message(FATAL_ERROR "no objects were given")
endif()
set(checked 0)
foreach(object IN LISTS OBJECTS)
    execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
    foreach(line IN LISTS lines)
        math(EXPR checked "${checked} + 1")
        if(line MATCHES " [WVu] (.+)$" AND NOT CMAKE_MATCH_1 MATCHES "${ISA}")
            message(SEND_ERROR "${object} defines the weak symbol ${CMAKE_MATCH_1} outside the namespace ${ISA}; use no "
                               "standard library and no shared inline function there, or mark it always_inline")
        endif()
    endforeach()
endforeach()
if(checked EQUAL 0)
    message(FATAL_ERROR "the objects define no symbol at all")
endif()
message(STATUS "${checked} symbols checked")
