/* The load of the wire benchmark: an upstream that answers as an Ollama does, and a client that reads and checks every answer.
 *
 *   load upstream PORTS                      listens on that many free loopback ports, prints them, serves
 *   load streams PORT COUNT LINES RATE RAMP  opens COUNT streams spread over RAMP seconds, each LINES lines, RATE lines a second
 *   load small PORT CONNECTIONS              closed loop: each connection sends its next small request when the last is answered
 *
 * Steered by lines on stdin: "mark" answers with one line of JSON on stdout (so the driver reads a proxy's CPU and these counters at
 * the same moment), "step US" lets the upstream send lines only at multiples of so many microseconds, many streams at once, as a GPU
 * decodes a batch (0: each line at its own time), "quit" or the end of stdin ends it. What the client does not expect is an error, never throughput: a status other
 * than 200, a body that ends early, a wrong number of lines, a last line without done:true.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MODEL "llama3.1:8b"
#define DIGEST "46e0c10c039e019119339687c3c1757cc81b9da49709a3b3924863ba87ca666e"
#define SECOND 1000000000LL
#define HEAD_ROOM 16384
#define LINE_ROOM 2048
#define ERROR_ROOM 240

/* ------------------------------------------------------------------------------------------------------------ both sides */

static int epoll_fd;
static int64_t now_ns, step_ns;
static char scratch[1 << 17];

static void die(const char *what) { fprintf(stderr, "load: %s: %s\n", what, strerror(errno)); exit(2); }
static void *must(void *memory) { if (!memory) die("out of memory"); return memory; }

static int64_t clock_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * SECOND + t.tv_nsec; }

/* splitmix64 with a fixed seed: two runs send the same requests. */
static uint64_t random_state = 20240607;
static uint64_t random_u64(void) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}
static double random_unit(void) { return (double)(random_u64() >> 11) / 9007199254740992.0; }
static const char *pick_word(void) {
    static const char *const words[] = {" the", " a", " of", " rack", " and", " quiet", " fan", " in", " token", " is", " memory", " to", " slow", " as",
        " queue", " that", " one", " with", " answer", " model", " it", " for", " copper", " on", " wait", " was", " small", " by", " lake", " at"};
    return words[random_u64() % (sizeof words / sizeof *words)];
}

static void watch(int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) die("epoll_ctl");
}

/* Waits to the nanosecond where the kernel can: streams are to be paced, not sent in bursts of a millisecond. */
static int wait_events(struct epoll_event *events, int room, int64_t until_ns) {
    int64_t left = until_ns < 0 ? -1 : until_ns - clock_ns();
    if (until_ns >= 0 && left < 0) left = 0;
    int count;
#ifdef SYS_epoll_pwait2
    struct timespec timeout = {left / SECOND, left % SECOND};
    count = (int)syscall(SYS_epoll_pwait2, epoll_fd, events, room, left < 0 ? NULL : &timeout, NULL, (size_t)0);
#else
    count = epoll_wait(epoll_fd, events, room, left < 0 ? -1 : (int)((left + 999999) / 1000000));
#endif
    if (count < 0 && errno != EINTR) die("epoll_wait");
    now_ns = clock_ns();
    return count < 0 ? 0 : count;
}

/* stdin is the one event without data. Returns 'm' (mark), 'q' (quit or end) or 0. The driver awaits each answer, so lines never pile up. */
static int command(void) {
    char text[64] = "";
    ssize_t got = read(0, text, sizeof text - 1);
    if (got < 0) return errno == EAGAIN || errno == EINTR ? 0 : 'q';
    if (!strncmp(text, "step ", 5)) step_ns = atol(text + 5) * 1000;
    return got == 0 || text[0] == 'q' ? 'q' : 'm';
}

static void prepare_process(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    prctl(PR_SET_TIMERSLACK, 1);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if ((epoll_fd = epoll_create1(0)) < 0) die("epoll_create1");
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    watch(EPOLL_CTL_ADD, 0, EPOLLIN, NULL);
    now_ns = clock_ns();
}

static char *find(const char *in, size_t length, const char *what) { return memmem(in, length, what, strlen(what)); }

/* The value of a header in a head that ends with its empty line; NULL if absent. */
static const char *header(const char *head, size_t length, const char *name) {
    size_t width = strlen(name);
    const char *end = head + length, *line = memchr(head, '\n', length);
    for (; line && (size_t)(end - line) > width + 2; line = memchr(line + 1, '\n', (size_t)(end - line - 1)))
        if (!strncasecmp(line + 1, name, width) && line[1 + width] == ':') return line + 2 + width + strspn(line + 2 + width, " \t");
    return NULL;
}

static void no_delay(int fd) { int on = 1; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); }

/* -------------------------------------------------------------------------------------------------------------- upstream */

struct peer { /* a connection of a proxy (or of a client) to the upstream; listener: input == NULL */
    int fd, port_index, heap_index; /* heap_index -1: streams nothing now */
    long lines_left;
    int64_t due_ns, interval_ns;
    char *input, *output;
    size_t input_length, input_room, output_length;
};

static struct peer **heap;
static int heap_length, heap_room;
static long requests_of_port[64], open_streams;
static char date_text[40];

static void heap_put(int at, struct peer *peer) { heap[at] = peer; peer->heap_index = at; }

static void heap_sift(int at) {
    struct peer *peer = heap[at];
    for (; at > 0 && heap[(at - 1) / 2]->due_ns > peer->due_ns; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
    for (int child; (child = 2 * at + 1) < heap_length; at = child) {
        if (child + 1 < heap_length && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= peer->due_ns) break;
        heap_put(at, heap[child]);
    }
    heap_put(at, peer);
}

static void heap_add(struct peer *peer) {
    if (heap_length == heap_room) heap = must(realloc(heap, sizeof *heap * (size_t)(heap_room = heap_room * 2 + 64)));
    heap_put(heap_length++, peer);
    heap_sift(heap_length - 1);
    open_streams++;
}

static void heap_remove(struct peer *peer) {
    int at = peer->heap_index;
    if (at < 0) return;
    peer->heap_index = -1;
    open_streams--;
    if (at != --heap_length) { heap_put(at, heap[heap_length]); heap_sift(at); }
}

/* A peer that goes is freed only after the batch of events that may still name it. */
static struct peer *leaving[4096];
static int leaving_length;

static void peer_close(struct peer *peer) {
    if (peer->fd < 0) return;
    heap_remove(peer);
    close(peer->fd);
    peer->fd = -1;
    leaving[leaving_length++] = peer;
}

static void peers_free(void) {
    while (leaving_length) {
        struct peer *peer = leaving[--leaving_length];
        free(peer->input);
        free(peer->output);
        free(peer);
    }
}

static void peer_send(struct peer *peer, const char *data, size_t length) {
    ssize_t sent = 0;
    if (peer->fd < 0) return;
    if (!peer->output_length) {
        sent = send(peer->fd, data, length, MSG_NOSIGNAL);
        if (sent == (ssize_t)length) return;
        if (sent < 0 && errno != EAGAIN) { peer_close(peer); return; }
        if (sent < 0) sent = 0;
        watch(EPOLL_CTL_MOD, peer->fd, EPOLLIN | EPOLLOUT, peer);
    }
    size_t rest = length - (size_t)sent;
    peer->output = must(realloc(peer->output, peer->output_length + rest));
    memcpy(peer->output + peer->output_length, data + sent, rest);
    peer->output_length += rest;
}

static void peer_flush(struct peer *peer) {
    ssize_t sent = send(peer->fd, peer->output, peer->output_length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) { peer_close(peer); return; }
    if (sent <= 0) return;
    peer->output_length -= (size_t)sent;
    memmove(peer->output, peer->output + sent, peer->output_length);
    if (!peer->output_length) watch(EPOLL_CTL_MOD, peer->fd, EPOLLIN, peer);
}

static void tell_date(void) {
    static time_t told;
    time_t now = time(NULL);
    if (now != told) strftime(date_text, sizeof date_text, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
    told = now;
}

static int created_at(char *to, size_t room) { /* as Ollama writes it: UTC, nanoseconds */
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    static time_t told;
    static char second[32];
    if (t.tv_sec != told) strftime(second, sizeof second, "%Y-%m-%dT%H:%M:%S", gmtime(&t.tv_sec));
    told = t.tv_sec;
    return snprintf(to, room, "%s.%09ldZ", second, t.tv_nsec);
}

static void answer(struct peer *peer, const char *status, const char *type, const char *body) {
    int length = snprintf(scratch, sizeof scratch, "HTTP/1.1 %s\r\nContent-Type: %s\r\nDate: %s\r\nContent-Length: %zu\r\n\r\n%s", status, type, date_text, strlen(body), body);
    peer_send(peer, scratch, (size_t)length);
}

/* The last object of a stream, or all of an answer that is not streamed. */
static void last_object(char *to, size_t room, const char *content) {
    char at[64];
    created_at(at, sizeof at);
    snprintf(to, room, "{\"model\":\"" MODEL "\",\"created_at\":\"%s\",\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"done\":true,\"done_reason\":\"stop\","
        "\"total_duration\":4883583458,\"load_duration\":1334875,\"prompt_eval_count\":26,\"prompt_eval_duration\":342546000,\"eval_count\":282,\"eval_duration\":4535599000}", at, content);
}

static void answer_small(struct peer *peer) {
    char body[768];
    last_object(body, sizeof body, "Hello! How are you");
    answer(peer, "200 OK", "application/json; charset=utf-8", body);
}

/* One line is one chunk; the head travels with the first line, because Ollama sends neither before the first token exists. */
static void stream_line(struct peer *peer, int first) {
    char line[LINE_ROOM], at[64];
    int last = peer->lines_left == 1;
    if (last) {
        last_object(line, sizeof line - 1, "");
        strcat(line, "\n");
    } else {
        created_at(at, sizeof at);
        snprintf(line, sizeof line, "{\"model\":\"" MODEL "\",\"created_at\":\"%s\",\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"done\":false}\n", at, pick_word());
    }
    int length = first ? snprintf(scratch, sizeof scratch, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: %s\r\nTransfer-Encoding: chunked\r\n\r\n", date_text) : 0;
    length += snprintf(scratch + length, sizeof scratch - (size_t)length, "%zx\r\n%s\r\n", strlen(line), line);
    peer_send(peer, scratch, (size_t)length);
    peer->lines_left--;
    if (last) { heap_remove(peer); peer_send(peer, "0\r\n\r\n", 5); }
}

static double number_after(const char *in, size_t length, const char *key, double otherwise) {
    char *at = find(in, length, key);
    return at ? strtod(at + strlen(key) + strspn(at + strlen(key), " :"), NULL) : otherwise;
}

static void answer_chat(struct peer *peer, const char *body, size_t length) {
    if (find(body, length, "\"stream\":false") || find(body, length, "\"stream\": false")) { answer_small(peer); return; }
    double rate = number_after(body, length, "\"lines_per_s\"", 100);
    peer->lines_left = (long)number_after(body, length, "\"num_predict\"", 100);
    peer->interval_ns = (int64_t)(SECOND / rate);
    if (peer->lines_left < 2) peer->lines_left = 2;
    peer->due_ns = now_ns + (int64_t)(random_unit() * (double)peer->interval_ns); /* streams keep no common step */
    stream_line(peer, 1);
    if (peer->fd >= 0) heap_add(peer);
}

static void answer_request(struct peer *peer, const char *head, const char *body, size_t body_length) {
    static const char json[] = "application/json; charset=utf-8";
    static const char details[] = "\"details\":{\"parent_model\":\"\",\"format\":\"gguf\",\"family\":\"llama\",\"families\":[\"llama\"],\"parameter_size\":\"8.0B\",\"quantization_level\":\"Q4_K_M\"}";
    char text[1024];
    requests_of_port[peer->port_index]++;
    if (!strncmp(head, "POST /api/chat ", 15)) { answer_chat(peer, body, body_length); return; }
    if (!strncmp(head, "GET /api/version ", 17)) { answer(peer, "200 OK", json, "{\"version\":\"0.32.15\"}"); return; }
    if (!strncmp(head, "GET /api/tags ", 14)) {
        snprintf(text, sizeof text, "{\"models\":[{\"name\":\"" MODEL "\",\"model\":\"" MODEL "\",\"modified_at\":\"2026-08-21T18:48:11.123456789Z\",\"size\":4920753328,\"digest\":\"" DIGEST "\",%s}]}", details);
        answer(peer, "200 OK", json, text);
        return;
    }
    if (!strncmp(head, "GET /api/ps ", 12)) {
        snprintf(text, sizeof text, "{\"models\":[{\"name\":\"" MODEL "\",\"model\":\"" MODEL "\",\"size\":6654289920,\"digest\":\"" DIGEST "\",%s,"
            "\"expires_at\":\"2036-08-21T18:53:11.123456789Z\",\"size_vram\":6654289920,\"context_length\":4096}]}", details);
        answer(peer, "200 OK", json, text);
        return;
    }
    if (!strncmp(head, "GET / ", 6)) { answer(peer, "200 OK", "text/plain; charset=utf-8", "Ollama is running"); return; }
    answer(peer, "404 Not Found", "text/plain", "404 page not found");
}

/* Answers the requests that are complete, one at a time: a streaming answer holds back what is pipelined behind it. */
static void peer_requests(struct peer *peer) {
    while (peer->fd >= 0 && peer->heap_index < 0) {
        char *end = find(peer->input, peer->input_length, "\r\n\r\n");
        if (!end) return;
        size_t head_length = (size_t)(end - peer->input) + 4;
        const char *size = header(peer->input, head_length, "content-length");
        size_t body_length = size ? strtoul(size, NULL, 10) : 0;
        if (header(peer->input, head_length, "transfer-encoding")) { answer(peer, "411 Length Required", "text/plain", ""); peer_close(peer); return; }
        if (peer->input_length < head_length + body_length) return;
        answer_request(peer, peer->input, peer->input + head_length, body_length);
        if (peer->fd < 0) return;
        peer->input_length -= head_length + body_length;
        memmove(peer->input, peer->input + head_length + body_length, peer->input_length);
    }
}

static void peer_read(struct peer *peer) {
    if (peer->input_length + 1 >= peer->input_room) peer->input = must(realloc(peer->input, peer->input_room *= 2));
    ssize_t got = recv(peer->fd, peer->input + peer->input_length, peer->input_room - 1 - peer->input_length, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) { peer_close(peer); return; }
    if (got < 0) return;
    peer->input_length += (size_t)got;
    peer->input[peer->input_length] = 0;
    peer_requests(peer);
}

static void peer_accept(struct peer *listener) {
    for (int fd, left = 64; left-- && (fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct peer *peer = must(calloc(1, sizeof *peer));
        no_delay(fd);
        *peer = (struct peer){.fd = fd, .port_index = listener->port_index, .heap_index = -1, .input_room = 4096, .input = must(malloc(4096))};
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, peer);
    }
}

static void listen_on(int index, struct peer *listener) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    *listener = (struct peer){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), .port_index = index, .heap_index = -1};
    if (listener->fd < 0 || bind(listener->fd, (void *)&address, size) || listen(listener->fd, 8192)) die("cannot listen on loopback");
    getsockname(listener->fd, (void *)&address, &size);
    printf("%s%d", index ? "," : "", ntohs(address.sin_port));
    watch(EPOLL_CTL_ADD, listener->fd, EPOLLIN, listener);
}

/* Steps keep off the multiples of a millisecond: there the kernel's own tick samples who is running. */
static int64_t next_due_ns(void) {
    int64_t phase_ns = step_ns * 37 / 100, due_ns = heap[0]->due_ns;
    return step_ns ? (due_ns - phase_ns + step_ns - 1) / step_ns * step_ns + phase_ns : due_ns;
}

static void send_due(void) {
    if (!heap_length || next_due_ns() > now_ns) return;
    for (int left = 4096; left-- && heap_length && heap[0]->due_ns <= now_ns;) {
        struct peer *peer = heap[0];
        peer->due_ns += peer->interval_ns;
        heap_sift(0);
        stream_line(peer, 0);
        if (peer->fd >= 0 && peer->heap_index < 0 && peer->input_length) peer_requests(peer);
        if (leaving_length > 2048) return;
    }
}

static int upstream(int ports) {
    struct peer listeners[64];
    struct epoll_event events[1024];
    if (ports < 1 || ports > 64) die("1 to 64 ports");
    printf("{\"ports\":[");
    for (int i = 0; i < ports; i++) listen_on(i, &listeners[i]);
    printf("]}\n");
    for (;;) {
        int count = wait_events(events, 1024, heap_length ? next_due_ns() : -1);
        tell_date();
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) {
                int asked = command();
                if (asked == 'q') return 0;
                if (!asked) continue;
                printf("{\"open_streams\":%ld,\"requests\":[", open_streams);
                for (int p = 0; p < ports; p++) printf("%s%ld", p ? "," : "", requests_of_port[p]);
                printf("]}\n");
                continue;
            }
            if (!peer->input) { peer_accept(peer); continue; }
            if (peer->fd >= 0 && events[i].events & EPOLLOUT) peer_flush(peer);
            if (peer->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) peer_read(peer);
        }
        send_due();
        peers_free();
    }
}

/* ---------------------------------------------------------------------------------------------------------------- client */

/* Heads as real clients send them. @H host:port, @L body length, @I 32 hex digits and @S 16 hex digits that no other request has:
 * every head differs from every other, so a proxy that remembers heads gains only what it would gain from real clients' header lines. */
static const char *const header_sets[] = {
    /* ollama-python (httpx) */
    "Host: @H\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nAccept: application/json\r\nUser-Agent: ollama-python/0.6.1 (x86_64 linux) Python/3.12.3\r\nX-Request-Id: @I\r\nContent-Length: @L\r\n\r\n",
    "Host: @H\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nAccept: application/json\r\nUser-Agent: ollama-python/0.4.7 (arm64 darwin) Python/3.11.9\r\ntraceparent: 00-@I-@S-01\r\nContent-Length: @L\r\n\r\n",
    "Host: @H\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nUser-Agent: python-httpx/0.28.1\r\nx-session-id: @I\r\nContent-Length: @L\r\nContent-Type: application/json\r\n\r\n",
    /* openai-python, openai-node: x-stainless-* */
    "Host: @H\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.109.1\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 1.109.1\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.12.3\r\nAuthorization: Bearer ollama\r\nX-Stainless-Async: false\r\nx-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\nIdempotency-Key: stainless-python-retry-@I\r\nContent-Length: @L\r\n\r\n",
    "Host: @H\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: AsyncOpenAI/Python 2.6.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.6.0\r\nX-Stainless-OS: MacOS\r\nX-Stainless-Arch: arm64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.13.0\r\nAuthorization: Bearer sk-@S\r\nX-Stainless-Async: async:asyncio\r\nx-stainless-retry-count: 1\r\nx-stainless-read-timeout: 600\r\ntraceparent: 00-@I-@S-01\r\nContent-Length: @L\r\n\r\n",
    "accept: application/json\r\ncontent-type: application/json\r\nuser-agent: OpenAI/JS 5.12.2\r\nx-stainless-retry-count: 0\r\nx-stainless-timeout: 600\r\nx-stainless-lang: js\r\nx-stainless-package-version: 5.12.2\r\nx-stainless-os: Linux\r\nx-stainless-arch: x64\r\nx-stainless-runtime: node\r\nx-stainless-runtime-version: v22.9.0\r\nauthorization: Bearer ollama\r\nx-request-id: @I\r\nhost: @H\r\nconnection: keep-alive\r\naccept-language: *\r\nsec-fetch-mode: cors\r\naccept-encoding: br, gzip, deflate\r\ncontent-length: @L\r\n\r\n",
    /* anthropic-python */
    "Host: @H\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: Anthropic/Python 0.71.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 0.71.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.12.3\r\nanthropic-version: 2023-06-01\r\nX-Api-Key: ollama\r\nX-Stainless-Async: false\r\nx-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\nx-session-id: @I\r\nContent-Length: @L\r\n\r\n",
    /* curl, wget, HTTPie, PowerShell */
    "Host: @H\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nContent-Type: application/json\r\nX-Request-ID: @I\r\nContent-Length: @L\r\n\r\n",
    "Host: @H\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\nX-Trace: @S\r\nContent-Length: @L\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n",
    "Host: @H\r\nUser-Agent: Wget/1.21.4\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: Keep-Alive\r\nContent-Type: application/json\r\nX-Correlation-Id: @I\r\nContent-Length: @L\r\n\r\n",
    "Host: @H\r\nUser-Agent: HTTPie/3.2.4\r\nAccept-Encoding: gzip, deflate, br\r\nAccept: application/json, */*;q=0.5\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nX-Request-Id: @I\r\nContent-Length: @L\r\n\r\n",
    "Host: @H\r\nUser-Agent: Mozilla/5.0 (Windows NT 10.0; Microsoft Windows 10.0.22631; en-US) PowerShell/7.4.@S\r\nAccept-Encoding: gzip, deflate, br\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: @L\r\n\r\n",
    /* browsers in front of a web front end on the same host */
    "Host: @H\r\nConnection: keep-alive\r\nContent-Length: @L\r\nsec-ch-ua-platform: \"Linux\"\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36\r\nsec-ch-ua: \"Not)A;Brand\";v=\"8\", \"Chromium\";v=\"138\", \"Google Chrome\";v=\"138\"\r\nContent-Type: application/json\r\nsec-ch-ua-mobile: ?0\r\nAccept: */*\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nReferer: http://localhost:3000/c/@I\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\r\n",
    "Host: @H\r\nUser-Agent: Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: application/x-ndjson\r\nAccept-Language: fr-FR,fr;q=0.8,en-US;q=0.5,en;q=0.3\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: http://localhost:8080/\r\nContent-Type: application/json\r\nContent-Length: @L\r\nOrigin: http://localhost:8080\r\nConnection: keep-alive\r\nCookie: session=@I@S; theme=dark\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-site\r\nPriority: u=0\r\n\r\n",
    "Host: @H\r\nContent-Type: application/json\r\nAccept: */*\r\nSec-Fetch-Site: same-site\r\nAccept-Language: en-US,en;q=0.9\r\nAccept-Encoding: gzip, deflate\r\nSec-Fetch-Mode: cors\r\nOrigin: http://127.0.0.1:5173\r\nUser-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15\r\nReferer: http://127.0.0.1:5173/chat/@I\r\nSec-Fetch-Dest: empty\r\nContent-Length: @L\r\nConnection: keep-alive\r\n\r\n",
    /* Go: the ollama command, LangChainGo, a Go agent behind OpenTelemetry */
    "Host: @H\r\nUser-Agent: ollama/0.32.15 (amd64 linux) Go/go1.25.1\r\nContent-Length: @L\r\nAccept: application/x-ndjson\r\nContent-Type: application/json\r\nX-Request-Id: @S\r\nAccept-Encoding: gzip\r\n\r\n",
    "Host: @H\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: @L\r\nContent-Type: application/json\r\nTraceparent: 00-@I-@S-01\r\nTracestate: vendor=@S\r\nBaggage: tenant=alpha,user=@S\r\nAccept-Encoding: gzip\r\n\r\n",
    /* JavaScript: ollama-js, undici, axios, LangChain */
    "host: @H\r\nconnection: keep-alive\r\nContent-Type: application/json\r\nAccept: application/json\r\nUser-Agent: ollama-js/0.6.0 (x64 linux Node.js/v22.9.0)\r\nx-request-id: @I\r\naccept-language: *\r\nsec-fetch-mode: cors\r\naccept-encoding: br, gzip, deflate\r\ncontent-length: @L\r\n\r\n",
    "Accept: application/json, text/plain, */*\r\nContent-Type: application/json\r\nUser-Agent: axios/1.12.2\r\nx-b3-traceid: @I\r\nx-b3-spanid: @S\r\nx-b3-sampled: 1\r\nContent-Length: @L\r\nAccept-Encoding: gzip, compress, deflate, br\r\nHost: @H\r\nConnection: keep-alive\r\n\r\n",
    /* requests, aiohttp, Open WebUI's own back end */
    "Host: @H\r\nUser-Agent: python-requests/2.32.5\r\nAccept-Encoding: gzip, deflate, br\r\nAccept: */*\r\nConnection: keep-alive\r\nX-Amzn-Trace-Id: Root=1-@S-@S\r\nContent-Length: @L\r\nContent-Type: application/json\r\n\r\n",
    "Host: @H\r\nContent-Type: application/json\r\nX-OpenWebUI-User-Name: Ada\r\nX-OpenWebUI-User-Id: @I\r\nX-OpenWebUI-User-Email: ada@example.org\r\nX-OpenWebUI-User-Role: user\r\nX-OpenWebUI-Chat-Id: @I\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate, br\r\nUser-Agent: Python/3.11 aiohttp/3.12.15\r\nContent-Length: @L\r\n\r\n",
    /* Java, .NET, Rust, a reverse proxy in front */
    "Connection: keep-alive\r\nContent-Length: @L\r\nHost: @H\r\nUser-Agent: Java-http-client/21.0.4\r\nContent-Type: application/json\r\nX-Request-Id: @I\r\n\r\n",
    "Host: @H\r\nUser-Agent: OllamaSharp/5.4\r\nAccept: application/json\r\ntraceparent: 00-@I-@S-00\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: @L\r\n\r\n",
    "content-type: application/json\r\naccept: */*\r\nuser-agent: reqwest/0.12 session/@S\r\naccept-encoding: gzip, br\r\nhost: @H\r\ncontent-length: @L\r\n\r\n",
    "Host: @H\r\nX-Real-IP: 10.0.0.17\r\nX-Forwarded-For: 203.0.113.9, 10.0.0.17\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: ai.example.org\r\nX-Request-Id: @I\r\nContent-Length: @L\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\nContent-Type: application/json\r\nUser-Agent: ollama-python/0.5.4 (x86_64 linux) Python/3.10.12\r\n\r\n",
};
#define SETS ((int)(sizeof header_sets / sizeof *header_sets))
#define REQUESTS 1024 /* prepared texts; the hex digits in them change with every use */
#define HOLES 12

struct request { char *text; size_t length; int holes, hole_at[HOLES], hole_width[HOLES]; };
static struct request requests[REQUESTS];

static size_t write_body(char *to, size_t room, int spaced, const char *tail) {
    int words = 4 + (int)(random_unit() * random_unit() * 300); /* most prompts are short, some are not */
    size_t length = (size_t)snprintf(to, room, spaced ? "{\"model\": \"" MODEL "\", \"messages\": [{\"role\": \"user\", \"content\": \"Say" : "{\"model\":\"" MODEL "\",\"messages\":[{\"role\":\"user\",\"content\":\"Say");
    for (int i = 0; i < words; i++) length += (size_t)snprintf(to + length, room - length, "%s", pick_word());
    return length + (size_t)snprintf(to + length, room - length, "\"}],%s", tail);
}

static void prepare_request(struct request *request, const char *set, int port, const char *body, size_t body_length) {
    char *text = must(malloc(HEAD_ROOM + body_length)), *to = text + sprintf(text, "POST /api/chat HTTP/1.1\r\n");
    for (const char *from = set; *from; from++) {
        if (*from != '@' || !from[1] || !strchr("HLIS", from[1])) { *to++ = *from; continue; }
        char what = *++from;
        if (what == 'H') to += sprintf(to, "127.0.0.1:%d", port);
        else if (what == 'L') to += sprintf(to, "%zu", body_length);
        else {
            int width = what == 'I' ? 32 : 16;
            request->hole_at[request->holes] = (int)(to - text);
            request->hole_width[request->holes++] = width;
            memset(to, '0', (size_t)width);
            to += width;
        }
    }
    memcpy(to, body, body_length);
    request->text = text;
    request->length = (size_t)(to - text) + body_length;
}

static void prepare_requests(int port, const char *tail, const char *spaced_tail) {
    char body[8192];
    for (int i = 0; i < REQUESTS; i++) {
        int spaced = (int)(random_u64() & 1);
        size_t length = write_body(body, sizeof body, spaced, spaced ? spaced_tail : tail);
        prepare_request(&requests[i], header_sets[i % SETS], port, body, length);
    }
}

/* Fills the holes with digits never used before and returns the text, valid until the next call. */
static const struct request *next_request(void) {
    static const char digits[] = "0123456789abcdef";
    struct request *request = &requests[random_u64() % REQUESTS];
    for (int i = 0; i < request->holes; i++)
        for (int at = 0; at < request->hole_width[i]; at += 16) {
            uint64_t value = random_u64();
            for (int d = 0; d < 16; d++, value >>= 4) request->text[request->hole_at[i] + at + d] = digits[value & 15];
        }
    return request;
}

enum { HEAD, SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, COMPLETE };

struct client {
    int fd, state, last_done, keep_alive, stray;
    long lines;
    uint64_t left; /* bytes of the body or of the chunk still to come */
    int64_t sent_ns;
    size_t head_length, line_length;
    char *head, line[LINE_ROOM];
};

static struct client *clients;
static int client_count, client_port, streaming, opened, open_now, finished, quitting;
static long lines_wanted, lines_seen, answers_seen, errors_seen, reconnects, streams_started, streams_done;
static char first_error[ERROR_ROOM];
static uint32_t *latencies_us; /* tenths of a microsecond since the last mark */
static size_t latencies_length, latencies_room;

static void report_error(const char *what, const char *detail, size_t length) {
    if (errors_seen++) return;
    size_t at = (size_t)snprintf(first_error, sizeof first_error, "%s", what);
    for (size_t i = 0; i < length && at + 2 < sizeof first_error && i < 120; i++) /* the text goes into JSON */
        first_error[at++] = detail[i] < ' ' || detail[i] == '"' || detail[i] == '\\' || detail[i] > '~' ? ' ' : detail[i];
    first_error[at] = 0;
}

static void client_close(struct client *client) {
    if (client->fd >= 0) { close(client->fd); open_now--; }
    client->fd = -1;
}

static void client_fail(struct client *client, const char *what, const char *detail, size_t length) {
    report_error(what, detail, length);
    client_close(client);
    client->state = COMPLETE;
    if (streaming) finished++;
}

static void client_send(struct client *client) {
    const struct request *request = next_request();
    client->state = HEAD;
    client->head_length = client->line_length = 0;
    client->lines = 0;
    client->last_done = 0;
    client->sent_ns = clock_ns();
    ssize_t sent = send(client->fd, request->text, request->length, MSG_NOSIGNAL);
    if (sent != (ssize_t)request->length) client_fail(client, "could not send a request in one write", "", 0);
}

/* Connecting blocks: on loopback it is one system call, and a full backlog then slows the ramp instead of breaking it. */
static void client_open(struct client *client) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)client_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0) die("socket (is the limit of open files too low?)");
    open_now++;
    if (!client->head) client->head = must(malloc(HEAD_ROOM));
    if (connect(client->fd, (void *)&address, sizeof address)) { client_fail(client, "cannot connect: ", strerror(errno), strlen(strerror(errno))); return; }
    fcntl(client->fd, F_SETFL, fcntl(client->fd, F_GETFL) | O_NONBLOCK);
    no_delay(client->fd);
    watch(EPOLL_CTL_ADD, client->fd, EPOLLIN, client);
    streams_started++;
    client_send(client);
}

static void client_line(struct client *client) {
    client->line[client->line_length] = 0;
    client->lines++;
    lines_seen++;
    if (client->line[0] != '{' || find(client->line, client->line_length, "\"error\"")) report_error("unexpected line: ", client->line, client->line_length);
    client->last_done = find(client->line, client->line_length, "\"done\":true") != NULL;
    client->line_length = 0;
}

static void client_body(struct client *client, const char *data, size_t length) {
    while (length) {
        const char *end = streaming ? memchr(data, '\n', length) : NULL;
        size_t take = end ? (size_t)(end - data) + 1 : length;
        if (client->line_length + take >= LINE_ROOM) { report_error("line too long: ", client->line, client->line_length); client->line_length = 0; take = length; }
        else { memcpy(client->line + client->line_length, data, take); client->line_length += take; }
        if (end) client_line(client);
        data += take;
        length -= take;
    }
}

static void client_complete(struct client *client) {
    client->state = COMPLETE;
    if (!streaming) client->last_done = find(client->line, client->line_length, "\"done\":true") != NULL && client->line[client->line_length - 1] == '}';
    if (!client->last_done) { client_fail(client, "an answer ended without done:true: ", client->line, client->line_length); return; }
    if (streaming) {
        if (client->lines != lines_wanted) { client_fail(client, "wrong number of lines in a stream", "", 0); return; }
        streams_done++;
        finished++;
        client_close(client);
        return;
    }
    answers_seen++;
    if (latencies_length == latencies_room) latencies_us = must(realloc(latencies_us, sizeof *latencies_us * (latencies_room = latencies_room * 2 + 65536)));
    latencies_us[latencies_length++] = (uint32_t)((clock_ns() - client->sent_ns) / 100);
    if (!client->keep_alive) { client_close(client); reconnects++; if (!quitting) client_open(client); return; }
    if (!quitting) client_send(client);
}

static void client_head(struct client *client) { /* the head is complete in client->head */
    const char *head = client->head, *value;
    size_t length = client->head_length;
    if (length < 12 || memcmp(head, "HTTP/1.1 200", 12)) { client_fail(client, "not a 200: ", head, length); return; }
    value = header(head, length, "connection");
    client->keep_alive = !value || strncasecmp(value, "close", 5);
    if ((value = header(head, length, "content-length"))) { client->left = strtoull(value, NULL, 10); client->state = SIZED; }
    else if ((value = header(head, length, "transfer-encoding")) && !strncasecmp(value, "chunked", 7)) { client->left = 0; client->state = CHUNK_SIZE; client->stray = 0; }
    else client_fail(client, "an answer with neither length nor chunks: ", head, length);
}

/* Takes what one state can take from the bytes at hand; returns how many that were. */
static size_t client_step(struct client *client, const char *data, size_t length) {
    size_t used = 0;
    switch (client->state) {
    case HEAD:
        while (used < length) {
            if (client->head_length + 1 >= HEAD_ROOM) { client_fail(client, "head too long: ", client->head, 100); return length; }
            client->head[client->head_length++] = data[used++];
            if (data[used - 1] == '\n' && client->head_length >= 4 && !memcmp(client->head + client->head_length - 4, "\r\n\r\n", 4)) {
                client->head[client->head_length] = 0;
                client_head(client);
                break;
            }
        }
        return used;
    case SIZED:
    case CHUNK_DATA:
        used = length < client->left ? length : client->left;
        client_body(client, data, used);
        client->left -= used;
        if (!client->left && client->state == SIZED) client_complete(client);
        else if (!client->left) { client->state = CHUNK_END; client->stray = 0; }
        return used;
    case CHUNK_SIZE: { /* stray counts digits; extensions are not expected from any of the proxies */
        const char c = data[0];
        if (c == '\r') return 1;
        if (c == '\n' && client->stray) { client->state = client->left ? CHUNK_DATA : TRAILER; client->stray = 0; return 1; }
        if (!isxdigit((unsigned char)c) || client->stray++ > 8) { client_fail(client, "bad chunk size: ", data, length); return length; }
        client->left = client->left * 16 + (uint64_t)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
        return 1;
    }
    case CHUNK_END:
    case TRAILER: /* stray counts the bytes of the CRLF seen */
        if (data[0] != "\r\n"[client->stray]) { client_fail(client, "bad end of a chunk: ", data, length); return length; }
        if (++client->stray < 2) return 1;
        client->stray = 0;
        if (client->state == TRAILER) client_complete(client); else client->state = CHUNK_SIZE;
        return 1;
    default:
        client_fail(client, "bytes after the end of an answer: ", data, length);
        return length;
    }
}

static void client_read(struct client *client) {
    ssize_t got = recv(client->fd, scratch, sizeof scratch, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        if (client->state == COMPLETE) { client_close(client); return; }
        client_fail(client, got < 0 ? "connection reset in an answer after: " : "connection closed in an answer after: ", client->state == HEAD ? client->head : client->line, client->state == HEAD ? client->head_length : client->line_length);
        return;
    }
    for (ssize_t at = 0; at < got && client->fd >= 0;) at += (ssize_t)client_step(client, scratch + at, (size_t)(got - at));
}

static int by_value(const void *a, const void *b) { uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b; return x < y ? -1 : x > y; }

static double percentile(double share) {
    if (!latencies_length) return 0;
    return latencies_us[(size_t)(share * (double)(latencies_length - 1))] / 10.0;
}

static void tell(const char *event) {
    int least = -1;
    for (int i = 0; streaming && i < opened; i++) if (clients[i].fd >= 0 && (least < 0 || clients[i].lines < least)) least = (int)clients[i].lines;
    long lines = lines_seen, answers = answers_seen, errors = errors_seen; /* counted before the sort, which takes a while */
    int64_t at = clock_ns();
    if (latencies_length) qsort(latencies_us, latencies_length, sizeof *latencies_us, by_value);
    printf("{\"event\":\"%s\",\"at_s\":%.6f,\"started\":%ld,\"open\":%d,\"least_lines\":%d,\"done\":%ld,\"lines\":%ld,\"answers\":%ld,\"errors\":%ld,\"reconnects\":%ld,"
           "\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,\"first_error\":\"%s\"}\n",
           event, (double)at / SECOND, streams_started, open_now, least, streams_done, lines, answers, errors, reconnects,
           percentile(0.5), percentile(0.9), percentile(0.99), percentile(1), first_error);
    latencies_length = 0;
}

static void run_client(double ramp_s) {
    struct epoll_event events[512];
    int64_t begin_ns = clock_ns(), pause_ns = (int64_t)(ramp_s * SECOND / client_count);
    int told = 0;
    while (!quitting) {
        for (int budget = 64; opened < client_count && budget-- && begin_ns + opened * pause_ns <= now_ns;) client_open(&clients[opened++]);
        if (streaming && !told && finished == client_count) { tell("finished"); told = 1; }
        int count = wait_events(events, 512, opened < client_count ? begin_ns + opened * pause_ns : -1);
        for (int i = 0; i < count; i++) {
            struct client *client = events[i].data.ptr;
            if (client) { if (client->fd >= 0) client_read(client); continue; }
            int asked = command();
            if (asked == 'q') quitting = 1;
            else if (asked) tell("mark");
        }
        for (int i = 0; !streaming && i < opened; i++) /* a connection that failed is replaced; its error is counted */
            if (clients[i].fd < 0 && !quitting && errors_seen < 1000) { reconnects++; client_open(&clients[i]); }
    }
    tell("end");
}

static int client(int argc, char **argv) {
    char tail[128] = "\"stream\":false}", spaced[128] = " \"stream\": false}";
    client_port = atoi(argv[2]);
    client_count = atoi(argv[3]);
    streaming = !strcmp(argv[1], "streams");
    if (client_port < 1 || client_port > 65535 || client_count < 1 || client_count > 60000 || (streaming && argc != 7)) return 64;
    if (streaming) {
        lines_wanted = atol(argv[4]);
        snprintf(tail, sizeof tail, "\"stream\":true,\"options\":{\"num_predict\":%ld,\"lines_per_s\":%s}}", lines_wanted, argv[5]);
        snprintf(spaced, sizeof spaced, " \"stream\": true, \"options\": {\"num_predict\": %ld, \"lines_per_s\": %s}}", lines_wanted, argv[5]);
    }
    prepare_requests(client_port, tail, spaced);
    clients = must(calloc((size_t)client_count, sizeof *clients));
    for (int i = 0; i < client_count; i++) clients[i].fd = -1;
    run_client(streaming ? atof(argv[6]) : 0);
    return errors_seen ? 1 : 0;
}

int main(int argc, char **argv) {
    prepare_process();
    if (argc == 3 && !strcmp(argv[1], "upstream")) return upstream(atoi(argv[2]));
    if (argc >= 4 && (!strcmp(argv[1], "streams") || !strcmp(argv[1], "small"))) return client(argc, argv);
    fprintf(stderr, "usage: load upstream PORTS | load streams PORT COUNT LINES RATE RAMP_S | load small PORT CONNECTIONS\n");
    return 64;
}
