"""Write values of one type as JSON, and read them back.

Invariant: what `write` returns, `read` accepts. A value for which that does not hold is refused by `write`, in the
process that made it. (But for lists and objects nested 200 deep and more, which `read` takes for no JSON.)

pydantic does the work. Its schema of the type is changed in a few places first, because by default some values
would not come back: bytes that are no UTF-8, NaN and infinity, fields with an alias, and computed fields in a model
that forbids extra ones. What a model says in its own `model_config` stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter
from pydantic_core import PydanticSerializationError, SchemaSerializer, SchemaValidator

from asyncq.annotations import UnresolvedAnnotation
from asyncq.errors import TaskDefinitionError

__all__ = ["Codec", "NotWritable", "codec_for"]

_WIRE_CONFIG = {
    "ser_json_bytes": "base64",
    "val_json_bytes": "base64",
    "ser_json_inf_nan": "strings",
    "serialize_by_alias": True,
}

# Schema nodes that have a configuration of their own; every other node takes the one of the node around it.
_CONFIGURED = {"model", "dataclass", "typed-dict"}
_FIELDS = {"model-field", "typed-dict-field", "dataclass-field"}
# Values under these keys are the user's data, not schema.
_DATA_KEYS = {"metadata", "default", "expected", "members", "config"}
_NOT_JSON = {
    "is-instance": "an instance of an arbitrary class",
    "is-subclass": "a class",
    "callable": "a callable",
}
# Nodes that hand JSON on to the schema inside them as it is.
_TRANSPARENT = {"nullable", "default", "definitions", "function-after", "list", "set", "frozenset", "generator"}

Node = Mapping[str, Any]


class NotWritable(ValueError):
    """A value fits its type, and still cannot be written as JSON."""


class Codec:
    """JSON for one type.

    Args:
        annotation: The type; everything that pydantic understands.
        what: What the type is for, for error messages: "parameter 'to' of task 'shop.send_email'".
        forbid_extra: Refuse keys that the outermost model does not know, unless it says itself what to do with them.

    Raises:
        TaskDefinitionError: Values of the type could not be read back.
        Exception: pydantic's own, where it cannot make a schema.
    """

    __slots__ = ("_to_json", "_validate_json", "_validate_python", "wire_keys")

    def __init__(self, annotation: Any, what: str, *, forbid_extra: bool = False) -> None:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        if not adapter.pydantic_complete:
            adapter.rebuild(force=True)  # or it says which name is missing
        schema = _for_wire(adapter.core_schema)
        model = _outermost_model(schema)
        if forbid_extra and model is not None:
            model["config"].setdefault("extra_fields_behavior", "forbid")
        _refuse_lossy(schema, what)
        # Without `_use_prebuilt=False` nested models would bring their own, unchanged validators.
        validator = SchemaValidator(schema, _WIRE_CONFIG, _use_prebuilt=False)  # type: ignore[arg-type]
        serializer = SchemaSerializer(schema, _WIRE_CONFIG, _use_prebuilt=False)  # type: ignore[arg-type]
        self._validate_python: Callable[[Any], Any] = validator.validate_python
        self._validate_json: Callable[[bytes], Any] = validator.validate_json
        self._to_json: Callable[..., bytes] = serializer.to_json
        self.wire_keys: tuple[str, ...] = tuple(_keys_of(model)) if model is not None else ()

    def write(self, value: Any) -> bytes:
        """Return the value as JSON.

        Raises:
            pydantic.ValidationError: The value does not fit the type.
            NotWritable: It fits, and cannot be written as JSON.
        """
        checked = self._validate_python(value)
        try:
            return self._to_json(checked, warnings="error")
        except (PydanticSerializationError, UnicodeEncodeError, RecursionError):
            return self._write_doubtful(checked)

    def read(self, body: bytes) -> Any:
        """Return the value that the JSON stands for.

        Raises:
            pydantic.ValidationError: It does not fit the type, or is not JSON.
        """
        return self._validate_json(body)

    def _write_doubtful(self, value: Any) -> bytes:
        """Write a value that pydantic did not expect after validation, and see whether it can be read.

        A model that was changed after it was made can hold a wrong value; a validator may turn a value into another
        type than the annotation's on purpose. Only reading tells the two apart.
        """
        try:
            body = self._to_json(value, warnings=False)
        except (PydanticSerializationError, UnicodeEncodeError, RecursionError) as error:
            raise NotWritable(str(error)) from error
        self._validate_json(body)
        return body


def codec_for(annotation: Any, what: str, *, forbid_extra: bool = False) -> Codec:
    """Make a codec, with errors that say what it was for.

    Args:
        annotation: As for `Codec`.
        what: As for `Codec`.
        forbid_extra: As for `Codec`.

    Raises:
        TaskDefinitionError: Values of the type cannot travel.
        UnresolvedAnnotation: A model names a class that does not exist (yet).
    """
    try:
        return Codec(annotation, what, forbid_extra=forbid_extra)
    except TaskDefinitionError:
        raise
    except PydanticUndefinedAnnotation as error:
        raise UnresolvedAnnotation(f"{what}: {error}") from error
    except PydanticUserError as error:
        if error.code == "class-not-fully-defined":
            raise UnresolvedAnnotation(f"{what}: {error}") from error
        reason = error.message.partition("\n")[0].partition(". Set `arbitrary_types_allowed")[0]
        raise TaskDefinitionError(
            f"{what} cannot travel as JSON: {reason}. Take data in its place: a pydantic model, a dataclass, plain "
            "values. (Or teach pydantic the type: its `__get_pydantic_core_schema__`.)"
        ) from error
    except ImportError as error:
        if "email-validator" not in str(error):
            raise
        raise TaskDefinitionError(
            f"{what} is an e-mail address, and the package that checks those is not installed: "
            "pip install 'asyncq[email]'."
        ) from error


def _for_wire(node: Any) -> Any:
    """Return a copy of a core schema with our configuration in every model, dataclass and typed dict."""
    if isinstance(node, (list, tuple)):
        return type(node)(_for_wire(item) for item in node)
    if not isinstance(node, dict):
        return node
    copied = {key: value if key in _DATA_KEYS else _for_wire(value) for key, value in node.items()}
    if copied.get("type") in _CONFIGURED:
        copied["config"] = {**_WIRE_CONFIG, **node.get("config", {})}
    if isinstance(copied.get("computed_fields"), list):
        copied["computed_fields"] = []  # the reader computes them again
    return copied


def _outermost_model(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the model (or typed dict) that the JSON object stands for, without the validators around it."""
    definitions = {item.get("ref"): item for item in schema.get("definitions", ())}
    node: dict[str, Any] | None = schema
    while node is not None and node.get("type") not in {"model", "typed-dict"}:
        node = definitions.get(node["schema_ref"]) if node.get("type") == "definition-ref" else node.get("schema")
    return node


def _keys_of(model: Node) -> Iterator[str]:
    """Yield the keys that a model's JSON object has."""
    node = model
    while "fields" not in node:
        if "schema" not in node:
            return
        node = node["schema"]
    if isinstance(node["fields"], dict):
        for name, field in node["fields"].items():
            yield _written_key(name, field, model["config"])


def _written_key(name: str, field: Node, config: Node) -> str:
    alias = field.get("serialization_alias")
    return alias if alias is not None and config.get("serialize_by_alias") else name


def _refuse_lossy(schema: dict[str, Any], what: str) -> None:
    """Refuse a type whose values would be written and could not be read."""
    _refuse_no_json(schema, what)
    if schema.get("type") == "typed-dict":  # the parameters of a task
        for name, field in schema["fields"].items():
            _refuse_no_json(field["schema"], what)
            _refuse_lossy_field(name, field, schema["config"], what)
        _refuse_lossy_fields([field["schema"] for field in schema["fields"].values()], schema["config"], what)
    else:
        _refuse_lossy_fields(schema, _WIRE_CONFIG, what)


def _refuse_no_json(schema: Any, what: str) -> None:
    node = schema
    while isinstance(node, dict) and node.get("type") in _TRANSPARENT and "serialization" not in node:
        node = node.get("schema") or node.get("items_schema")
    if isinstance(node, dict) and node.get("type") in _NOT_JSON and "serialization" not in node:
        raise TaskDefinitionError(
            f"{what} takes {_NOT_JSON[node['type']]}, which cannot travel as JSON. "
            "Take the data that it is made from: a pydantic model, a dataclass, a string ..."
        )


def _refuse_lossy_fields(node: Any, config: Node, what: str) -> None:
    if isinstance(node, (list, tuple)):
        for item in node:
            _refuse_lossy_fields(item, config, what)
    if not isinstance(node, dict):
        return
    if node.get("type") in _CONFIGURED:
        config = node["config"]
    fields = node.get("fields")
    if isinstance(fields, dict):
        owner = getattr(node.get("cls"), "__name__", node.get("model_name", ""))
        for name, field in fields.items():
            if isinstance(field, dict) and field.get("type") in _FIELDS:
                _refuse_lossy_field(name, field, config, f"{what}: field {owner}.{name}")
    for key, value in node.items():
        if key not in _DATA_KEYS:
            _refuse_lossy_fields(value, config, what)


def _refuse_lossy_field(name: str, field: Node, config: Node, what: str) -> None:
    has_default = field.get("required") is False or field["schema"].get("type") == "default"
    if field.get("serialization_exclude") and not has_default:
        raise TaskDefinitionError(
            f"{what} has exclude=True and no default, so it would not travel and its model could not be read. "
            "Give it a default, or leave exclude=True out."
        )
    written = _written_key(name, field, config)
    alias = field.get("validation_alias")
    if alias is None or written in _top_level_aliases(alias):
        return
    if written == name and (config.get("validate_by_name") or config.get("populate_by_name")):
        return
    raise TaskDefinitionError(
        f"{what} is written as {written!r} and read from {alias!r}, so it could not be read. "
        "Give it one alias for both: Field(alias=...)."
    )


def _top_level_aliases(alias: Any) -> set[Any]:
    """Return the keys that a validation alias reads: it is a key, a path, or a list of paths."""
    if isinstance(alias, str):
        return {alias}
    paths = alias if alias and isinstance(alias[0], list) else [alias]
    return {path[0] for path in paths if len(path) == 1}
