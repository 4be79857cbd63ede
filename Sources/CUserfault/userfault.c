#include "vs_userfault.h"
