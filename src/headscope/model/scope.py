"""What headscope changes about a model while it runs it, seen by the pass that asked for it and by nothing else.

A model object belongs to the user, whose other threads may run it, generate with it or train it at the same moment.
So nothing here changes what they see:

    implementation  the attention implementation that configs name: this thread reads another name
    evaluating      this thread reads training=False, and calls the code that modules had before they were compiled
    hooking         hooks that do nothing in a pass of anyone else
    around          replacements of `forward` that call the module's own in a pass of anyone else

What belongs to a pass is known by the thread that entered these blocks. While a visit runs, `outside` suspends them,
so that a visit may run any model, the visited one too, as if it were alone.

Code that torch.compile traces counts as anyone else's: it is compiled once and may then run in every thread. A class
whose own code is decorated with torch.compile therefore stays compiled.

Misleading when: a family runs its layers in threads of its own, or compiles its class; their attention may not be seen,
and the self-check says so.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
"""Gets a module that is being called and its arguments; may return others."""
After = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
"""Gets a module, its arguments and its output; what it returns, unless None, is the output."""
Forward = Callable[..., Any]
Around = Callable[[nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]
"""What runs in a module's place: gets the module, its own forward, and the arguments."""

LOCK = threading.RLock()
"""Held by headscope's passes, in `evaluating` and `around`. One for all models: they may share modules, and a visit may
run another model, so that two locks could wait for each other."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """What this thread's passes see."""

    blocks: frozenset[object] = frozenset()
    """The `hooking` and `around` blocks whose functions run."""
    names: dict[int, str] = field(default_factory=dict[int, str])
    """Attention implementation by the config's id."""
    evaluated: frozenset[int] = frozenset()
    """Ids of the modules that are in evaluation mode."""


class _Here(threading.local):
    scope = _Scope()


_HERE = _Here()


@contextmanager
def _within(scope: _Scope) -> Generator[None, None, None]:
    before = _HERE.scope
    try:
        _HERE.scope = scope
        yield
    finally:
        _HERE.scope = before


@contextmanager
def outside() -> Generator[None, None, None]:
    """Within the block this thread sees every model as everyone else does."""
    with _within(_Scope()):
        yield


@contextmanager
def _block() -> Generator[Callable[[], bool], None, None]:
    """Gives a function that tells, within the block, whether what runs belongs to it."""
    token = object()

    def here() -> bool:
        return not torch.compiler.is_compiling() and token in _HERE.scope.blocks

    with _within(replace(_HERE.scope, blocks=_HERE.scope.blocks | {token})):
        yield here


@contextmanager
def hooking(
    modules: Iterable[nn.Module], *, before: Before | None = None, after: After | None = None, outermost: bool = False
) -> Generator[None, None, None]:
    """Within the block `before` and `after` run around each module's forward, in this thread's passes.

    Args:
        modules: Each gets one hook; left as they were afterwards.
        before: Sees, and may replace, the arguments.
        after: Sees, and may replace, the output.
        outermost: `before` runs ahead of hooks that were there, and `after` also where the module raises.
    """
    with ExitStack() as stack:
        here = stack.enter_context(_block())

        def ahead(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return before(module, arguments, named) if before is not None and here() else None

        def behind(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            return after(module, arguments, named, output) if after is not None and here() else None

        for module in modules:
            if before is not None:
                stack.callback(module.register_forward_pre_hook(ahead, with_kwargs=True, prepend=outermost).remove)
            if after is not None:
                stack.callback(module.register_forward_hook(behind, with_kwargs=True, always_call=outermost).remove)
        yield


@contextmanager
def around(modules: Sequence[nn.Module], run: Around) -> Generator[None, None, None]:
    """Within the block each module's forward goes through `run`, in this thread's passes.

    Args:
        modules: Left as they were afterwards.
        run: Gets the module, its own forward and the arguments.
    """

    def ours(module: nn.Module, own: Forward) -> Forward:
        return lambda *given, **named: run(module, _before_compiled(own) or own, given, named)

    with LOCK, _block() as here:
        before = [(module, module.__dict__.get("forward")) for module in modules]
        try:
            for module in modules:
                # Not by assignment: TransformerLens's bridges would hand it on to the module that they wrap.
                module.__dict__["forward"] = _routed(ours(module, module.forward), module.forward, here)
            yield
        finally:
            for module, own in before:
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own


# --- The attention implementation ------------------------------------------------------------------------------------

_NAME = "_attn_implementation_internal"


def _name_of(config: PreTrainedConfig) -> str | None:
    if not torch.compiler.is_compiling() and (name := _HERE.scope.names.get(id(config))) is not None:
        return name
    if _NAME not in config.__dict__:
        raise AttributeError(f"{type(config).__name__!r} object has no attribute {_NAME!r}")
    return config.__dict__[_NAME]


def _set_name(config: PreTrainedConfig, name: str | None) -> None:
    config.__dict__[_NAME] = name


@contextmanager
def implementation(model: nn.Module, name: str | None) -> Generator[None, None, None]:
    """Within the block every config of `model` names this attention implementation, to this thread; None leaves them.

    The configs hold what they held; transformers' class of configs reads the name through a property from then on.
    """
    if name is None:
        yield
        return
    if _NAME not in PreTrainedConfig.__dict__:
        setattr(PreTrainedConfig, _NAME, property(_name_of, _set_name))
    configs = list(_configs(model))
    with _within(replace(_HERE.scope, names=_HERE.scope.names | {id(config): name for config in configs})):
        yield


def _configs(model: nn.Module) -> Iterator[PreTrainedConfig]:
    found: list[Any] = [getattr(module, "config", None) for module in (model, *model.modules())]
    seen: set[int] = set()
    while found:
        config = found.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            found.extend(getattr(config, name, None) for name in config.sub_configs)
            yield config


# --- Evaluation mode -------------------------------------------------------------------------------------------------


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Within the block every module of `model` is in evaluation mode, and runs uncompiled, to this thread.

    A module in training mode is, for the block, of a subclass whose `training` asks who reads it. Compiled TorchScript
    has no such class: its mode is changed for all, and changed back.
    """
    with LOCK:
        training = [module for module in model.modules() if module.training]
        before: list[tuple[nn.Module, type[nn.Module] | None]] = []
        try:
            for module in training:
                kind = None if isinstance(module, torch.jit.ScriptModule) else type(module)
                before.append((module, kind))
                if kind is None:
                    module.training = False
                elif not isinstance(kind.__dict__.get("training"), property):
                    _become(module, _two_faced(kind))
            evaluated = _HERE.scope.evaluated | {id(module) for module in training}
            with _within(replace(_HERE.scope, evaluated=evaluated)), _uncompiled(model):
                yield
        finally:
            for module, kind in before:
                if kind is None:
                    module.training = True
                else:
                    _become(module, kind)


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


@contextmanager
def _uncompiled(model: nn.Module) -> Generator[None, None, None]:
    """Within the block this thread runs the code of modules that were compiled in place, line by line."""
    with _block() as here, ExitStack() as stack:
        for module in model.modules():
            for name in ("_compiled_call_impl", "forward"):  # nn.Module.compile; torch.compile, assigned or wrapped
                compiled = module.__dict__.get(name)
                if compiled is not None and (own := _before_compiled(compiled)) is not None:
                    stack.callback(setattr, module, name, compiled)
                    setattr(module, name, _routed(own, compiled, here))
        yield


def _before_compiled(forward: Any) -> Forward | None:
    """What torch.compile compiled; None of what it did not compile."""
    return getattr(forward, "_torchdynamo_orig_callable", None)


def _routed(ours: Forward, theirs: Forward, here: Callable[[], bool]) -> Forward:
    return lambda *given, **named: (ours if here() else theirs)(*given, **named)


_TWO_FACED: weakref.WeakKeyDictionary[type[nn.Module], type[nn.Module]] = weakref.WeakKeyDictionary()


def _two_faced(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _TWO_FACED:

        def training(module: nn.Module) -> bool:
            if not torch.compiler.is_compiling() and id(module) in _HERE.scope.evaluated:
                return False
            return module.__dict__["training"]

        def set_training(module: nn.Module, mode: bool) -> None:
            module.__dict__["training"] = mode

        def reduce(module: nn.Module, protocol: Any) -> Any:
            """A copy, or a pickle, is of the module's own class."""
            _, _, *rest = kind.__reduce_ex__(module, protocol)
            return object.__new__, (kind,), *rest

        _TWO_FACED[kind] = type(
            kind.__name__,
            (kind,),
            {
                "__doc__": kind.__doc__,
                "__module__": kind.__module__,
                "__qualname__": kind.__qualname__,
                "__reduce_ex__": reduce,
                "training": property(training, set_training),
            },
        )
    return _TWO_FACED[kind]
