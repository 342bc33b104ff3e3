"""A teacher that answers from a store of its outputs; no weights are loaded."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from distillkit.cache.answers import Answers
from distillkit.cache.dense import Dense
from distillkit.cache.examples import difference
from distillkit.cache.fingerprints import encoded_fingerprint, task_settings, vocabulary_fingerprint
from distillkit.cache.sparse import Sparse
from distillkit.cache.store import Store
from distillkit.data.digest import rows_digest
from distillkit.data.encode import Encoded
from distillkit.data.encoder import Encoder
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.losses.shared import TaughtLoss
from distillkit.signals import Batch, Model, Signal, Wanted
from distillkit.tasks.base import Task

KEY = "teacher.path"
ANEW = "use the tokenizer and chat template of the teacher, or make it anew"


class CachedTeacher:
    """Answer with what `generate-pseudo generate=teacher_store` kept, of one teacher or the mixture of several.

    Args:
        path: Folder of a store, or of several about the same rows.
        weights: Of each store in the mixture Σ w p; None: all alike.
    """

    def __init__(self, path: str | list[str], weights: list[float] | None = None) -> None:
        self.paths = [path] if isinstance(path, str) else path
        if not self.paths:
            raise UserError("names no store", where=KEY)
        given = [1.0] * len(self.paths) if weights is None else weights
        if len(given) != len(self.paths) or min(given) < 0 or not sum(given) > 0:
            raise UserError(f"needs {len(self.paths)} numbers ≥ 0, one for each store", where="teacher.weights")
        self.weights = [weight / sum(given) for weight in given]

        self._opened: list[Store] = []

    @property
    def path(self) -> str:
        """Whose outputs they are, for reports and model cards; the stores as long as nobody has opened them."""
        return " + ".join([store.facts["teacher"]["path"] for store in self._opened] or self.paths)

    @property
    def stores(self) -> list[Store]:
        """The stores, which are opened the first time."""
        if not self._opened:
            keys = [KEY] if len(self.paths) == 1 else [f"{KEY}.{index}" for index in range(len(self.paths))]
            self._opened = [Store(path, key) for path, key in zip(self.paths, keys, strict=True)]
        return self._opened

    @property
    def _names(self) -> str:
        return " + ".join(self.paths)

    @property
    def labels(self) -> list[str] | None:
        """The class names that the teacher knows."""
        return self.stores[0].facts["labels"]

    @property
    def config(self) -> Any:
        """The transformers config of the (first) teacher."""
        return AutoConfig.for_model(**self.stores[0].facts["teacher"]["config"])

    @property
    def origin(self) -> tuple[str, str]:
        """The path and dtype of the (first) teacher."""
        of = self.stores[0].facts["teacher"]
        return of["path"], of["dtype"]

    def check(self, task: Task) -> None:
        """Refuse stores that were made for another task or with other settings of it, or that do not go together."""
        for store in self.stores:
            made_for = store.facts["task"]
            if made_for["name"] != task.name:
                raise _refused(store, f"was made for {made_for['name']}, not for {task.name}")
            ours = task_settings(task)
            changed = [name for name in ours | made_for["settings"] if ours.get(name) != made_for["settings"].get(name)]
            if changed:
                name, theirs = changed[0], made_for["settings"].get(changed[0])
                raise _refused(
                    store, f"was made with task.{name}={theirs!r}, and here it is {ours.get(name)!r}", "use the same"
                )
            for name, what in (("classes", "classes"), ("labels", "class names"), ("tokenizer", "tokenizer")):
                if store.facts[name] != self.stores[0].facts[name]:
                    raise _refused(store, f"has other {what} than {self.paths[0]}: they cannot be mixed")
            holds, first = _kind_of_logits(store), _kind_of_logits(self.stores[0])
            if holds != first:
                raise _refused(store, f"holds {holds}, and {self.paths[0]} {first}: they cannot be mixed")

    def check_rows(self, rows: Rows, labels: list[str] | None, split: str = "train") -> None:
        """Refuse other rows of a split than the teacher was asked about, and other classes."""
        digest = rows_digest(rows.split(split))
        for store in self.stores:
            of = store.facts["dataset"]
            if of["rows_digest"] != digest:
                was = f"'{of['name']}' ({of['split']}, {of['rows']:,} rows)"
                here = f"'{rows.name}' ({split}, {len(rows.split(split)):,} rows)"
                raise _refused(
                    store, f"is about other data: {was}, and here it is {here}", "make it anew from these rows"
                )
            if labels is not None and store.facts["labels"] not in (None, labels):
                raise _refused(store, f"has the classes {', '.join(store.facts['labels'][:8])}, in this order")

    def check_vocabulary(self, processor: Any) -> None:
        """Refuse a student whose token ids mean other tokens than the teacher's."""
        fingerprint = vocabulary_fingerprint(processor)
        for store in self.stores:
            if store.facts["tokenizer"]["vocabulary"] != fingerprint:
                size = store.facts["tokenizer"]["size"]
                known = "" if size is None else f" ({size:,} tokens, and the student's has {len(processor):,})"
                raise _refused(store, f"was made with another tokenizer{known}", "give the student the teacher's")

    def check_encoded(self, data: Encoded) -> None:
        """Refuse rows that were encoded in another way than the teacher read them."""
        for store in self.stores:
            of = store.facts["encoded"]
            if len(data) != of["rows"] or encoded_fingerprint(data, of["columns"]) != of["fingerprint"]:
                what = f"is about rows that were encoded in another way ({of['rows']:,} there, {len(data):,} here)"
                raise _refused(store, what, ANEW)

    def check_examples(self, rows: Rows, encoder: Encoder) -> None:
        """Refuse a student that reads some training rows in another way than the teacher; in milliseconds."""
        for store in self.stores:
            of = store.facts["encoded"]
            found = difference(encoder, rows.split("train"), of.get("examples", []), of["columns"])
            if found is not None:
                row, how = found
                what = f"is about rows that were encoded in another way: {rows.where('train', row)} {how}"
                raise _refused(store, what, ANEW)

    def check_loss(self, loss: LogitLoss, key: str) -> None:
        """Refuse a loss that needs more of the teacher's logits than was kept, by its config key."""
        name, taught = type(loss).__name__, isinstance(loss, TaughtLoss)
        linear = isinstance(loss, TaughtLoss) and loss.linear and not loss.scheduled
        for store in self.stores:
            codec = store.codec
            if not isinstance(codec, Sparse) or not loss.needs_teacher:
                continue
            if codec.k == 0 and not (linear and loss.temperature == codec.temperature):
                what = f"{name} needs the teacher's likeliest classes, and {store.path} only holds random draws"
                fix = f"use ForwardKL or SoftCrossEntropy at temperature {codec.temperature:g}, or store top_k_sampled"
                raise UserError(what, where=key, fix=fix)
            if taught and loss.absolute and (len(self.stores) > 1 or not codec.normaliser):
                what = f"{name} compares logits as they are, and {self._names} holds log-probabilities"
                fix = "compare centred logits, or make one store with generate.codec.normaliser=true"
                raise UserError(what, where=key, fix=fix)

    def check_wanted(self, wanted: Wanted, poolings: dict[str, set[str | None]]) -> None:
        """Refuse a loss that compares what was not kept.

        Args:
            wanted: By the objective.
            poolings: Feature → how the losses make one vector of a row's tokens; None: not at all.
        """
        if wanted.logits and any(store.codec is None for store in self.stores):
            raise UserError(f"{self._names} holds no logits", where=KEY, fix="make it with generate.logits=true")
        missing = sorted(wanted.features - set(self.stores[0].features))
        if missing:
            fix = f"make it with generate.features=[{','.join(missing)}]"
            raise UserError(f"{self._names} does not hold {', '.join(missing)}", where=KEY, fix=fix)
        if wanted.features and len(self.stores) > 1:
            raise UserError(
                "features of several stores cannot be mixed", where=KEY, fix="use one store, or logits only"
            )
        for name in wanted.features:
            kept = self.stores[0].features[name].pooling
            if kept is not None and poolings.get(name) != {kept}:
                what = f"{self._names} holds {name} pooled ({kept}), and the loss does not pool it so"
                raise UserError(what, where=KEY, fix="set the loss's pooling, or make it with generate.pooling=null")

    def answers(self, wanted: Wanted, task: Task) -> Answers:
        """Return what decodes the stores."""
        return Answers(self.stores, self.weights, wanted, task.output_kind)

    def load(self, task: Task, labels: list[str] | None) -> Model:  # noqa: ARG002
        """Return the teacher; there is nothing to load."""
        return stored_signal


def stored_signal(batch: Batch) -> Signal:
    """Return what the store says about the rows of a batch."""
    if batch.said is None:
        raise UserError("a store answers the rows that it was made of, and no others", where="teacher")
    return batch.said


def _refused(store: Store, what: str, fix: str | None = None) -> UserError:
    return UserError(f"{store.path} {what}", where=store.key, fix=fix)


def _kind_of_logits(store: Store) -> str:
    if isinstance(store.codec, Sparse):
        return f"some of the probabilities at temperature {store.codec.temperature:g}"
    return "all logits" if isinstance(store.codec, Dense) else "no logits"
