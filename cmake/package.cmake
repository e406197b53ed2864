# What `cmake --install` lays down and what `cpack` wraps into a Debian package.
#
# The tree can be moved as a whole: bin/saelua finds ../share/saelua beside itself.
#   bin/saelua   share/saelua/{lua,recipes,models,js}   share/doc/saelua
# Chart.js is a component of its own: `cmake --install` copies Debian's file into the tree; the Debian
# package depends on libjs-chart.js instead.
set(SHARE ${CMAKE_INSTALL_DATAROOTDIR}/saelua)
install(TARGETS saelua RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
install(DIRECTORY lua/saelua DESTINATION ${SHARE}/lua COMPONENT program FILES_MATCHING PATTERN "*.lua" PATTERN "*.json")
# The doc comments behind `:help` of what is written in C are read from its sources.
install(DIRECTORY lua/bind DESTINATION ${SHARE}/lua COMPONENT program FILES_MATCHING PATTERN "*.c")
install(DIRECTORY recipes DESTINATION ${SHARE} COMPONENT program FILES_MATCHING PATTERN "*.lua" PATTERN "*.json" PATTERN "*.md")
if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/models)
  install(DIRECTORY models DESTINATION ${SHARE} COMPONENT program)
endif()
foreach(page README.md CHANGELOG.md LICENSE)
  if(EXISTS ${CMAKE_SOURCE_DIR}/${page})
    install(FILES ${page} DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
  endif()
endforeach()
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program RENAME copyright) # where Debian looks
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program FILES_MATCHING PATTERN "*.md")

find_file(CHARTJS chart.min.js PATHS /usr/share/javascript/chart.js NO_DEFAULT_PATH)
if(CHARTJS)
  install(FILES ${CHARTJS} DESTINATION ${SHARE}/js COMPONENT chartjs)
else()
  message(STATUS "Chart.js not found (Debian: libjs-chart.js): reports will show tables instead of curves")
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME saelua)
set(CPACK_PACKAGE_VENDOR "the saelua authors")
set(CPACK_PACKAGE_CONTACT "the saelua authors <saelua@localhost>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL program)
set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "lua-cjson, libjs-chart.js")
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
