# find_package(cats): the target cats::cats. Works from the Python package and from an installation, wherever they are.
set(_cats_headers)
set(_cats_library)
# Python package: ROOT/cmake, ROOT/include, ROOT/libcats.so. Installation: LIB/cmake/cats, LIB/libcats.so.
foreach(_cats_try "${CMAKE_CURRENT_LIST_DIR}/.." "${CMAKE_CURRENT_LIST_DIR}/../..")
  if(NOT _cats_library AND EXISTS "${_cats_try}/libcats.so")
    get_filename_component(_cats_library "${_cats_try}/libcats.so" ABSOLUTE)
  endif()
endforeach()
foreach(_cats_try include ../../../include ../../../../include ../include)
  if(NOT _cats_headers AND EXISTS "${CMAKE_CURRENT_LIST_DIR}/${_cats_try}/cats.h")
    get_filename_component(_cats_headers "${CMAKE_CURRENT_LIST_DIR}/${_cats_try}" ABSOLUTE)
  endif()
endforeach()
if(NOT _cats_library OR NOT _cats_headers)
  set(cats_FOUND FALSE)
  set(cats_NOT_FOUND_MESSAGE
      "libcats.so is not beside ${CMAKE_CURRENT_LIST_DIR}: this installation of cats-toolkit was made without a C \
compiler. Use add_subdirectory on the folder that `cats c-sdk` writes.")
elseif(NOT TARGET cats::cats)
  add_library(cats::cats SHARED IMPORTED)
  set_target_properties(cats::cats PROPERTIES IMPORTED_LOCATION "${_cats_library}" IMPORTED_SONAME libcats.so
                                              INTERFACE_INCLUDE_DIRECTORIES "${_cats_headers}")
endif()
unset(_cats_try)
unset(_cats_headers)
unset(_cats_library)
