/* The least program that can stand in for peerix under its unit: the reference for wake-up time.
 *
 * It takes the sockets that systemd passes, says READY=1, and answers each datagram as an ask
 * for one path, which it has. It reads no file, starts no thread and allocates nothing.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static void tell_ready(void) {
    const char *name = getenv("NOTIFY_SOCKET");
    if (!name) return;
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    size_t length = strlen(name);
    if (length >= sizeof to.sun_path) return;
    memcpy(to.sun_path, name, length);
    if (to.sun_path[0] == '@') to.sun_path[0] = 0;
    int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(notify, "READY=1", 7, 0, (struct sockaddr *)&to,
           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
}

int main(void) {
    const char *passed = getenv("LISTEN_FDS");
    int udp = -1;
    for (int fd = 3; passed && fd < 3 + atoi(passed); fd++) {
        int type = 0;
        socklen_t size = sizeof type;
        if (!getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_DGRAM) udp = fd;
    }
    if (udp < 0) return 1;
    tell_ready();
    for (;;) {
        unsigned char datagram[2048];
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(udp, datagram, sizeof datagram, 0, (struct sockaddr *)&from, &size);
        if (length < 19) continue;
        datagram[0] = 3;
        datagram[18] = 1 << 6;
        sendto(udp, datagram, 19, 0, (struct sockaddr *)&from, size);
    }
}
