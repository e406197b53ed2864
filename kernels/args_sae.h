/* Argument structs of the SAE kernels; see list.h. */
#ifndef SL_ARGS_SAE_H
#define SL_ARGS_SAE_H

#endif
