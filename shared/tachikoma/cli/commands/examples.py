"""Examples of every command, for its help and its manual page.

Each command has at least one; the tests hold this, and that each example is accepted by its command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["EXAMPLES", "complete", "paragraphs"]

#: By the command's words after `tachikoma`: command lines, each after a line that says what it is for.
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "agents": (
        ("All agents, with every column", "tachikoma agents --wide"),
        ("The ids of the agents that are online", "tachikoma agents -o json | jq -r '.[] | select(.online) | .id'"),
    ),
    "agents drain": (
        ("Before maintenance: wait until what runs has ended", "tachikoma agents drain web-1 --wait -r 'new kernel'"),
    ),
    "agents enroll": (
        (
            "A token for web-1, for one hour, with a label that policies may use",
            "tachikoma agents enroll web-1 --ttl 1h --label role=web",
        ),
        ("A token for each of three hosts", "tachikoma agents enroll 'web-{1..3}'"),
    ),
    "agents label": (("Bind one label, and remove another", "tachikoma agents label web-1 role=web site-"),),
    "agents resume": (("After maintenance", "tachikoma agents resume web-1"),),
    "agents revoke": (("A host was stolen", "tachikoma agents revoke web-1 -r 'stolen on Monday' --yes"),),
    "approvals": (
        ("What waits for an approval, again every two seconds", "tachikoma approvals --watch"),
        ("Everything that one execution would run", "tachikoma approvals 5f3a"),
    ),
    "approve": (
        ("Show it, and ask for confirmation", "tachikoma approve 5f3a"),
        ("Only exactly the request that was shown", "tachikoma approve 5f3a --digest 9b1c… -m 'change 4711'"),
    ),
    "audit": (
        ("Follow the trail", "tachikoma audit tail --follow"),
        ("Check the log files for changes", "tachikoma audit verify /var/log/tachikoma/audit.jsonl"),
    ),
    "audit export": (
        ("For a SIEM, in OCSF", "tachikoma audit export --format ocsf > trail.jsonl"),
        ("From a log file, without a server", "tachikoma audit export --file /var/log/tachikoma/audit.jsonl"),
    ),
    "audit show": (("Everything that happened to one execution", "tachikoma audit show 5f3a"),),
    "audit tail": (
        ("The latest 50 events", "tachikoma audit tail -n 50"),
        ("Each new event as one JSON object a line", "tachikoma audit tail --follow -o json"),
    ),
    "audit verify": (
        ("A log file", "tachikoma audit verify /var/log/tachikoma/audit.jsonl"),
        (
            "With the end that you noted elsewhere",
            "tachikoma audit verify /var/log/tachikoma/audit.jsonl --head head.json",
        ),
    ),
    "batches": (
        ("The latest batch, and its answers", "tachikoma batches status $(tachikoma batches ls -l 1 -o name)"),
    ),
    "batches approvals": (
        ("What waits for an approval", "tachikoma batches approvals"),
        ("Everything that one batch would run, and where", "tachikoma batches approvals 5f3a"),
    ),
    "batches approve": (
        ("Show it, and ask for confirmation", "tachikoma batches approve 5f3a"),
        ("Only exactly the batch that was shown", "tachikoma batches approve 5f3a --digest 9b1c… -m 'change 4711'"),
    ),
    "batches reject": (("Say why", "tachikoma batches reject 5f3a -m 'too many at once'"),),
    "batches cancel": (("Start no more, and cancel what runs", "tachikoma batches cancel 5f3a"),),
    "batches logs": (
        ("All of it", "tachikoma batches logs 5f3a"),
        ("Of the hosts on which it failed", "tachikoma batches logs 5f3a --state failed"),
        ("Of some hosts", "tachikoma batches logs 5f3a 'web-[1-3]'"),
    ),
    "batches ls": (("The latest 5", "tachikoma batches ls -l 5"),),
    "batches retry": (
        ("Where it did not succeed", "tachikoma batches retry 5f3a"),
        ("Only where the host was offline, ten at once", "tachikoma batches retry 5f3a unreachable -p 10"),
    ),
    "batches status": (
        ("Totals", "tachikoma batches status 5f3a"),
        ("Equal answers, grouped", "tachikoma batches status 5f3a --group"),
    ),
    "beat": (("Check the schedules and exit", "tachikoma beat --check"),),
    "cancel": (
        ("Two executions, by the beginning of their ids", "tachikoma cancel 5f3a 77c0"),
        ("All that wait", "tachikoma ps -a --state QUEUED -o name | xargs -r tachikoma cancel"),
    ),
    "config": (("What the worker of this host would start with", "tachikoma config show worker"),),
    "config check": (("Before a restart", "tachikoma config check orchestrator"),),
    "config show": (("Each setting, and where its value comes from", "tachikoma config show worker --wide"),),
    "demo": (("See the whole system at work", "tachikoma demo"),),
    "dev": (
        ("With three agents, and Flower's pages", "tachikoma dev --agents 3 --flower"),
        ("In another terminal", "tachikoma exec agent-1 -- uname -a"),
    ),
    "doctor": (
        ("Your own access", "tachikoma doctor"),
        ("The worker that is installed on this host, as root", "tachikoma doctor worker"),
    ),
    "exec": (
        ("Run a command", "tachikoma exec web-1 -- journalctl -n 20"),
        ("Send a file, for at most five minutes", "tachikoma exec --timeout 5m web-1 -- tar x -C /srv < site.tar"),
        ("A terminal", "tachikoma exec -it web-1 -- bash"),
        ("Leave it running, and look at its output later", "tachikoma exec -d web-1 -- /srv/backup"),
        ("The answer in a program", "tachikoma exec -n -o json web-1 -- uname -r | jq -r .stdoutText"),
    ),
    "flower": (("On loopback", "tachikoma flower --listen 127.0.0.1:5555"),),
    "identity": (("Yours, and when it expires", "tachikoma identity show"),),
    "identity ca": (("A new authority", "tachikoma identity ca init ca --trust-domain example.org"),),
    "identity ca init": (
        (
            "A root that stays offline, and an authority under it",
            "tachikoma identity ca init root --trust-domain example.org",
        ),
        ("", "tachikoma identity ca init ca --under root --trust-domain example.org"),
    ),
    "identity ca issue": (
        (
            "An identity for a person",
            "tachikoma identity ca issue ca spiffe://example.org/user/anna --bundle root/ca.pem --identity anna",
        ),
    ),
    "identity check": (("Before the old root goes", "tachikoma identity check --bundle new-bundle.pem"),),
    "identity renew": (("For a service, by a timer", "tachikoma identity renew --identity /etc/tachikoma/identity"),),
    "identity show": (("Of a part, by its folder", "tachikoma identity show --identity /etc/tachikoma/identity"),),
    "login": (("With a token from an operator", "tachikoma login < token"),),
    "logs": (
        ("All of its output so far", "tachikoma logs 5f3a"),
        ("And what follows", "tachikoma logs -f 5f3a"),
    ),
    "manual": (("For yourself", "tachikoma manual ~/.local/share/man/man1"),),
    "orchestrator": (
        ("With its settings from the environment", "tachikoma orchestrator"),
        ("Another address", "tachikoma orchestrator --listen 0.0.0.0:8443"),
    ),
    "orchestrator health": (("For a container's health check", "tachikoma orchestrator health"),),
    "play": (
        ("At the original speed", "tachikoma play 5f3a"),
        ("Quickly, from a word on", "tachikoma play 5f3a --speed 4 --idle-limit 2s --search passwd"),
    ),
    "policy": (("Before a file is put in place", "tachikoma policy check --strict policy.yaml"),),
    "policy check": (("With warnings as errors", "tachikoma policy check --strict policy.yaml"),),
    "policy diff": (
        (
            "What a new file would change",
            "tachikoma policy diff policy.yaml new.yaml --file /var/log/tachikoma/audit.jsonl",
        ),
    ),
    "policy explain": (
        (
            "Whether Anna may restart nginx, and why",
            "tachikoma policy explain --policy policy.yaml --as spiffe://example.org/user/anna "
            "web-1 systemctl restart nginx",
        ),
    ),
    "policy schema": (("For an editor that checks YAML", "tachikoma policy schema > policy.schema.json"),),
    "policy status": (("Whether the newest files are active", "tachikoma policy status"),),
    "policy test": (("In a pipeline", "tachikoma policy test policy.yaml expectations.yaml"),),
    "ps": (
        ("What runs or waits", "tachikoma ps"),
        ("What failed on web-1 in the last hour", "tachikoma ps -a --on web-1 --state FAILED --since 1h"),
        ("Only ids", "tachikoma ps -a --by anna -o name"),
    ),
    "recordings": (("What you may play", "tachikoma recordings ls"),),
    "recordings export": (("For asciinema", "tachikoma recordings export 5f3a --file session.cast"),),
    "recordings ls": (("Recordings that showed a word", "tachikoma recordings ls --text passwd"),),
    "redis": (("Check a server", "tachikoma redis check"),),
    "redis acl": (("The users of all parts", "tachikoma redis acl --passwords passwords > users.acl"),),
    "redis backup": (
        (
            "With the audit log of this host",
            "tachikoma redis backup --audit /var/log/audit.jsonl /backup/today",
        ),
    ),
    "redis check": (
        ("A server, as its administrator", "tachikoma redis check --redis-url rediss://redis.example.org:6379"),
    ),
    "redis restore": (
        ("Check a backup", "tachikoma redis restore --check /backup/today"),
        ("For a server that starts in a new folder", "tachikoma redis restore /backup/today /var/lib/redis-restored"),
    ),
    "reject": (("With a reason for the requester", "tachikoma reject 5f3a -m 'not before Monday'"),),
    "run": (
        ("On a set of nodes", "tachikoma run 'web-[1-20]' -- uptime"),
        ("By label, ten at once, at most three failures", "tachikoma run role=web -p 10 --stop-after 3 -- /srv/deploy"),
        ("Only list the targets", "tachikoma run --preview 'web-*' site=berlin -- true"),
        ("Again where it failed", "tachikoma run --retry 5f3a failed -- /srv/deploy"),
        ("Show only the hosts whose answer differs", "tachikoma run --diff 'web-*' -- cat /etc/resolv.conf"),
    ),
    "schedule": (("What runs when", "tachikoma schedule ls"),),
    "schedule check": (("Before a file is put in place", "tachikoma schedule check --strict schedules.yaml"),),
    "schedule history": (("The latest 20 outcomes", "tachikoma schedule history nightly-backup -n 20"),),
    "schedule ls": (("Again every two seconds", "tachikoma schedule ls --watch"),),
    "schedule next": (("The next 5 scheduled times", "tachikoma schedule next nightly-backup -n 5"),),
    "schedule pause": (("Until it is resumed", "tachikoma schedule pause nightly-backup -r 'disk is full'"),),
    "schedule resume": (("From now on", "tachikoma schedule resume nightly-backup"),),
    "schedule run": (("Now", "tachikoma schedule run nightly-backup"),),
    "schedule schema": (("For an editor that checks YAML", "tachikoma schedule schema > schedules.schema.json"),),
    "sessions": (("Return to your session", "tachikoma sessions attach 5f3a"),),
    "sessions attach": (("By the beginning of its id", "tachikoma sessions attach 5f3a"),),
    "sessions close": (("Attached or not", "tachikoma sessions close 5f3a"),),
    "sessions ls": (("Those on one agent", "tachikoma sessions ls web-1"),),
    "sessions watch": (("Read along", "tachikoma sessions watch 5f3a"),),
    "setup": (
        ("See what it would do", "tachikoma setup --host control.example.org --dry-run"),
        ("With a Redis that exists", "tachikoma setup --redis-url rediss://redis.example.org:6379"),
    ),
    "shell": (
        ("Your login shell", "tachikoma shell web-1"),
        ("As another user, with another program", "tachikoma shell web-1 -u deploy --program zsh"),
    ),
    "spawner": (
        (
            "For the user of the worker",
            "tachikoma spawner --agent-id web-1 --socket /run/tachikoma/spawner --worker-user tachikoma",
        ),
    ),
    "status": (("State, times, exit code, usage", "tachikoma status 5f3a"),),
    "submitter": (("With its settings from the environment", "tachikoma submitter"),),
    "users": (("For a new colleague", "tachikoma users add ada"),),
    "users add": (("A token for one hour", "tachikoma users add ada --ttl 1h > token"),),
    "users ls": (("In a program", "tachikoma users ls -o json"),),
    "users revoke": (("A colleague left", "tachikoma users revoke ada -r 'left in May' --yes"),),
    "version": (("For a report", "tachikoma version -o json"),),
    "worker": (
        ("With its settings from the environment", "tachikoma worker"),
        ("With labels that it reports", "tachikoma worker --label rack=7 --slots 8"),
    ),
    "worker health": (("For a container's health check", "tachikoma worker health"),),
    "worker install": (("With a token from standard input", "tachikoma worker install --token-file - < token"),),
    "worker join": (
        (
            "With a token from standard input",
            "tachikoma worker join --token-file - --identity /var/lib/tachikoma/identity < token",
        ),
    ),
}


def complete(command: Any, path: str) -> None:
    """Give a command and those below it their examples, and join the lines of each paragraph of their help."""
    command.help = "\n\n".join(paragraphs(command.help or ""))
    command.epilog = _epilog(EXAMPLES.get(path, ()))
    for name, below in getattr(command, "commands", {}).items():
        complete(below, f"{path} {name}")


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, each on one line."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _epilog(examples: tuple[tuple[str, str], ...]) -> str:
    lines = []
    for purpose, line in examples:
        if purpose:
            lines.append(f"# {purpose}")
        lines.append(line)
    # Typer reads markup; a bracket before a letter would begin a tag.
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)]).replace("[", "\\[") if lines else ""
