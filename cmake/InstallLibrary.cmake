# `cmake --install`: headers, library and the CMake package that find_package(vimrt) finds.
include(CMakePackageConfigHelpers)

install(TARGETS vimrt EXPORT vimrtTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET vimrt_cuda)
    install(TARGETS vimrt_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(DIRECTORY cpp/include/vimrt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(vimrt_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/vimrt)
install(EXPORT vimrtTargets NAMESPACE vimrt:: DESTINATION ${vimrt_package_dir} FILE vimrtTargets.cmake)
configure_package_config_file(cmake/vimrtConfig.cmake.in generated/vimrtConfig.cmake INSTALL_DESTINATION ${vimrt_package_dir})
write_basic_package_version_file(generated/vimrtConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/generated/vimrtConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/generated/vimrtConfigVersion.cmake
        DESTINATION ${vimrt_package_dir})
