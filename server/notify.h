/* Tells a service manager how the daemon does (sd_notify's protocol, without its library). */
#pragma once

/* Sends `state` ("READY=1", "STOPPING=1", …) to the datagram socket that NOTIFY_SOCKET names: a
 * path, or an abstract name after '@'. Empty: there is nobody to tell. Errors are not reported,
 * since nothing depends on them. */
void notify_manager(const char *socket_name, const char *state);
