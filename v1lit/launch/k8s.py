"""A job of Kubernetes: the manifest of a JobSet, one pod per node, each of which runs a launcher.

Facts of jobset.x-k8s.io/v1alpha2 that it rests on (jobset_types.go of kubernetes-sigs/jobset): pods of an
indexed job are called JOBSET-REPLICATEDJOB-JOBINDEX-PODINDEX.JOBSET on the network; a label has the uid of
the JobSet; rules of `failurePolicy` are tried in order and match the reason for which a job failed, which is
`PodFailurePolicy` where a rule of that job's own policy said so; where no rule matches, all jobs start
again, as often as `maxRestarts` says.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

import yaml

from v1lit.errors import GAVE_UP, MISTAKE, OptionError
from v1lit.launch.job import Job, check_number, check_text, check_word

API = "jobset.x-k8s.io/v1alpha2"
NODES = "nodes"
"""Name of the one job in the set."""
LONGEST_NAME = 40
"""Characters of a JobSet's name: with what is added, the name of a pod has at most 63."""
UID = "V1LIT_JOBSET_UID"
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
SELECTOR = re.compile(r"([A-Za-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Kubernetes:
    """Where and how a cluster runs the pods; what is None is left to its defaults."""

    image: str
    """Container image with v1lit in it."""
    namespace: str | None = None
    """Of the JobSet."""
    queue: str | None = None
    """Local queue of Kueue."""
    priority: str | None = None
    """Priority class."""
    account: str | None = None
    """Service account."""
    time: int | None = None
    """Seconds after which a node's job is ended."""
    gpus: int | None = None
    """Of each pod."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    cpus: str | None = None
    """Of each pod, `64` or `500m`."""
    memory: str | None = None
    """Of each pod, `900Gi`."""
    shared_memory: str = "32Gi"
    """Size of /dev/shm, by which the processes that read data hand over batches."""
    claims: dict[str, str] = field(default_factory=dict)
    """Persistent volume claims, and where each is seen."""
    selectors: dict[str, str] = field(default_factory=dict)
    """Labels that nodes must have."""
    grace: int = 300
    """Seconds between SIGTERM and SIGKILL: for the step, and for writing the checkpoint."""
    setup: tuple[str, ...] = ()
    """Lines of the shell before the run starts."""

    def __post_init__(self) -> None:
        check_word("--image", self.image)
        for flag, text in (
            ("--namespace", self.namespace), ("--queue", self.queue), ("--priority-class", self.priority),
            ("--service-account", self.account), *(("--claim", name) for name in self.claims),
        ):  # fmt: skip
            if text is not None and not LABEL.fullmatch(text):
                raise OptionError(flag, text, "give a name of lower-case letters, digits, - and .")
        for flag, text in (
            ("--cpus", self.cpus), ("--memory", self.memory), ("--shared-memory", self.shared_memory),
        ):  # fmt: skip
            if text is not None and not QUANTITY.fullmatch(text):
                raise OptionError(flag, text, "give a quantity, such as 64, 500m or 900Gi")
        for name, value in self.selectors.items():
            if not SELECTOR.fullmatch(name) or not SELECTOR.fullmatch(value):
                raise OptionError("--node-selector", f"{name}={value}", "give LABEL=VALUE")
        for name, path in self.claims.items():
            check_text("--claim", path)
            if not path.startswith("/") or ":" in path:
                raise OptionError("--claim", f"{name}:{path}", "give CLAIM:/PATH")
        if not SELECTOR.fullmatch(self.gpu_resource):
            raise OptionError("--gpu-resource", self.gpu_resource, "give a name such as nvidia.com/gpu")
        for text in self.setup:
            check_text("--setup", text)
        check_number("--gpus-per-node", self.gpus, 1)
        check_number("--time", self.time, 1)
        check_number("--grace", self.grace, 1)


def manifest(job: Job, kubernetes: Kubernetes) -> str:
    """The manifest of a job as YAML, for `kubectl apply`. Raises OptionError if nodes are elastic."""
    if job.is_elastic:
        why = "a JobSet has a fixed number of pods: give one number"
        raise OptionError("--nodes", "{}:{}".format(*job.nodes), why)
    name = name_of(job.name)
    labels = {"kueue.x-k8s.io/queue-name": kubernetes.queue} if kubernetes.queue else {}
    metadata = _without_none(name=name, namespace=kubernetes.namespace, labels=labels or None)
    document = {
        "apiVersion": API,
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                ],
            },
            "replicatedJobs": [
                {"name": NODES, "replicas": 1, "template": {"spec": _job(job, kubernetes, name)}}
            ],
        },
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def name_of(text: str) -> str:
    """A name that Kubernetes allows, most like this one."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"run-{name}".strip("-")[:LONGEST_NAME]


def _job(job: Job, kubernetes: Kubernetes, name: str) -> dict[str, Any]:
    nodes = job.nodes[1]
    final = {"containerName": "node", "operator": "In", "values": [MISTAKE, GAVE_UP]}
    return _without_none(
        parallelism=nodes,
        completions=nodes,
        completionMode="Indexed",
        backoffLimit=0,
        activeDeadlineSeconds=kubernetes.time,
        podFailurePolicy={"rules": [{"action": "FailJob", "onExitCodes": final}]},
        template={"spec": _pod(job, kubernetes, name)},
    )


def _pod(job: Job, kubernetes: Kubernetes, name: str) -> dict[str, Any]:
    claims = list(kubernetes.claims.items())
    size = {"medium": "Memory", "sizeLimit": kubernetes.shared_memory}
    volumes = [{"name": "shm", "emptyDir": size}]
    volumes += [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, (claim, _) in enumerate(claims)
    ]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    mounts += [{"name": f"claim-{number}", "mountPath": path} for number, (_, path) in enumerate(claims)]
    gpus = {} if kubernetes.gpus is None else {kubernetes.gpu_resource: kubernetes.gpus}
    limits = {**gpus, **_without_none(cpu=kubernetes.cpus, memory=kubernetes.memory)}
    uid = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"}}
    variables = [{"name": key, "value": _literal(value)} for key, value in job.variables.items()]
    container = _without_none(
        name="node",
        image=kubernetes.image,
        command=["bash", "-c", _literal(_shell(job, kubernetes, name))],
        env=[{"name": UID, "valueFrom": uid}, *variables],
        ports=[{"containerPort": job.port}],
        resources={"limits": limits} if limits else None,
        volumeMounts=mounts,
    )
    return _without_none(
        restartPolicy="Never",
        terminationGracePeriodSeconds=kubernetes.grace,
        serviceAccountName=kubernetes.account,
        priorityClassName=kubernetes.priority,
        nodeSelector=kubernetes.selectors or None,
        containers=[container],
        volumes=volumes,
    )


def _shell(job: Job, kubernetes: Kubernetes, name: str) -> str:
    """The command of a pod; the launcher takes the place of the shell, so that signals reach it."""
    host = f"{name}-{NODES}-0-0.{name}"
    found = [f"--host={host}", "--number-from=JOB_COMPLETION_INDEX", f"--launch-from={UID}"]
    command = shlex.join(["v1lit", *job.node_words(), *found])
    return "\n".join(["set -e", *kubernetes.setup, f"exec {command}"])


def _literal(text: str) -> str:
    """`text` where Kubernetes puts in variables, which it writes `$(NAME)`."""
    return text.replace("$", "$$")


def _without_none(**given: Any) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}
