/*
 * Lists of denied system calls, as programs of seccomp(2).
 *
 * A denied call fails with EPERM. clone3 fails with ENOSYS at `sealed`, so that C libraries use clone, whose flags a
 * filter can read. Calls of other architectures have other numbers: at `private` those of 32-bit programs are listed
 * too, and at `sealed` no call of another architecture passes. docs/isolation.md has the list;
 * tests/confinement/test_system_calls.py compares the two, and the numbers with those of the kernel's headers.
 */
#define _GNU_SOURCE
#include "system_calls.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "protocol.h"

#if defined(__x86_64__)
#define OWN_ARCHITECTURE AUDIT_ARCH_X86_64
#define OTHER_ARCHITECTURE AUDIT_ARCH_I386
#define OTHER_ADD_KEY 286
#define OTHER_REQUEST_KEY 287
#define OTHER_KEYCTL 288
#elif defined(__aarch64__)
#define OWN_ARCHITECTURE AUDIT_ARCH_AARCH64
#define OTHER_ARCHITECTURE AUDIT_ARCH_ARM
#define OTHER_ADD_KEY 309
#define OTHER_REQUEST_KEY 310
#define OTHER_KEYCTL 311
#else
#error "the numbers of this architecture's system calls are to be added here"
#endif

#define NEW_NAMESPACES 0x7e020080U      /* CLONE_NEW* */
#define X32_CALLS 0x40000000U

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, (value))
#define FAIL(number) RETURN(SECCOMP_RET_ERRNO | (number))
#define IF(kind, value, skip) BPF_JUMP(BPF_JMP | (kind) | BPF_K, (value), 0, (skip))
#define DENY(number) IF(BPF_JEQ, (number), 1), FAIL(EPERM)

/* Keyrings are not separated by namespaces, other than by those of users. */
#define DENY_KEYRINGS DENY(SYS_add_key), DENY(SYS_request_key), DENY(SYS_keyctl)

/* Load the call's number, of this architecture; x32 shares its mark on x86-64 and has other numbers. */
#define OWN_CALLS LOAD(nr), IF(BPF_JGE, X32_CALLS, 1), FAIL(EPERM)

static struct sock_filter private_calls[] = {
	LOAD(arch),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCHITECTURE, 10, 0),
	IF(BPF_JEQ, OTHER_ARCHITECTURE, 8),
	LOAD(nr),
	DENY(OTHER_ADD_KEY), DENY(OTHER_REQUEST_KEY), DENY(OTHER_KEYCTL),
	RETURN(SECCOMP_RET_ALLOW),
	FAIL(EPERM),
	OWN_CALLS,
	DENY_KEYRINGS,
	RETURN(SECCOMP_RET_ALLOW),
};

static struct sock_filter sealed_calls[] = {
	LOAD(arch),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCHITECTURE, 1, 0),
	FAIL(EPERM),
	OWN_CALLS,
	DENY_KEYRINGS,
	/* namespaces and mounts */
	DENY(SYS_unshare), DENY(SYS_setns), DENY(SYS_mount), DENY(SYS_umount2), DENY(SYS_pivot_root), DENY(SYS_chroot),
	DENY(428 /* open_tree */), DENY(429 /* move_mount */), DENY(430 /* fsopen */), DENY(431 /* fsconfig */),
	DENY(432 /* fsmount */), DENY(433 /* fspick */), DENY(442 /* mount_setattr */), DENY(467 /* open_tree_attr */),
	/* other processes */
	DENY(SYS_ptrace), DENY(SYS_process_vm_readv), DENY(SYS_process_vm_writev), DENY(SYS_kcmp),
	DENY(438 /* pidfd_getfd */),
	/* large parts of the kernel that few programs need */
	DENY(SYS_bpf), DENY(SYS_perf_event_open), DENY(SYS_userfaultfd), DENY(425 /* io_uring_setup */),
	DENY(426 /* io_uring_enter */), DENY(427 /* io_uring_register */), DENY(SYS_fanotify_init),
	/* the host */
	DENY(SYS_init_module), DENY(SYS_finit_module), DENY(SYS_delete_module), DENY(SYS_kexec_load),
	DENY(SYS_kexec_file_load), DENY(SYS_reboot), DENY(SYS_swapon), DENY(SYS_swapoff), DENY(SYS_acct),
	DENY(SYS_quotactl), DENY(443 /* quotactl_fd */), DENY(SYS_syslog), DENY(SYS_settimeofday),
	DENY(SYS_clock_settime), DENY(SYS_adjtimex), DENY(SYS_clock_adjtime), DENY(SYS_sethostname),
	DENY(SYS_setdomainname), DENY(SYS_vhangup), DENY(SYS_open_by_handle_at),
#if defined(__x86_64__)
	DENY(SYS_iopl), DENY(SYS_ioperm),
#endif
	IF(BPF_JEQ, 435 /* clone3 */, 1), FAIL(ENOSYS),
	/* Network namespaces do not separate the sockets between a virtual machine and its host (vsock(7)). */
	IF(BPF_JEQ, SYS_socket, 4),
	LOAD(args[0]),
	IF(BPF_JEQ, AF_VSOCK, 1), FAIL(EPERM),
	RETURN(SECCOMP_RET_ALLOW),
	IF(BPF_JEQ, SYS_clone, 3),
	LOAD(args[0]),
	IF(BPF_JSET, NEW_NAMESPACES, 1), FAIL(EPERM),
	RETURN(SECCOMP_RET_ALLOW),
};

int deny_system_calls(unsigned int isolation)
{
	int sealed = isolation == ISOLATION_SEALED;
	struct sock_fprog program = {
		.len = (unsigned short)((sealed ? sizeof(sealed_calls) : sizeof(private_calls)) / sizeof(struct sock_filter)),
		.filter = sealed ? sealed_calls : private_calls,
	};

	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}
