/* What the service may ask: one small function a request. */
#ifndef REQUESTS_H
#define REQUESTS_H

#include <stdint.h>

#include "conns.h"
#include "wire.h"

void request_serve(struct conn *c, uint16_t type, uint16_t tag, struct reader payload);
/* Answer a broken frame: an error, and the end of that connection. */
void request_refuse(struct conn *c, uint16_t tag, const char *why);

#endif
