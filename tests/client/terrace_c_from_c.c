/* The header in C, not C++. */
#include "client/terrace_c.h"

const char* VersionFromC(void);
int32_t NullFromC(void);

const char* VersionFromC(void) { return terrace_version(); }
int32_t NullFromC(void) { return terrace_connect(NULL, NULL); }
