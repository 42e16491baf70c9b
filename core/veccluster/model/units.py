"""Sizes, durations, percentages and restricted texts: typed values inside, what a person writes outside.

Each is metadata of an annotated type, `Annotated[float, Duration("50ms", "1m")]`, and carries both sides of the model:
the validator and serialiser for pydantic, and the schema with its CEL rule for the CRD.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from veccluster.model.limits import MAX_SHARDS
from veccluster.model.validation import kind_of, shown

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BYTES |= {"Ki": KiB, "Mi": MiB, "Gi": GiB, "Ti": 1 << 40, "Pi": 1 << 50}
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


def wrong(reason: str) -> PydanticCustomError:
    """The error of a value that is not as `reason` says it must be."""
    return PydanticCustomError("unit", "{reason}", {"reason": reason})


def cel_text(text: str) -> str:
    """`text` as a CEL string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class _Unit(ABC):
    """A value that is written as a string; subclasses say how."""

    @abstractmethod
    def parse(self, written: object) -> Any:
        """The typed value; raises a pydantic error that says what would be right."""

    def format(self, value: Any) -> Any:
        """The value as one would write it, such that `parse` gives it back."""
        return value

    @abstractmethod
    def json_schema(self) -> JsonSchemaValue:
        """How the CRD describes it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(self.format)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self.json_schema()


@dataclass(frozen=True)
class Text(_Unit):
    """A string that wholly matches `pattern` (RE2 and Python alike); `says` completes "must be ..."."""

    pattern: str
    says: str
    max_length: int = 253

    def parse(self, written: object) -> str:
        """The same string."""
        if not isinstance(written, str):
            raise wrong(f"must be {self.says}, is {kind_of(written)}")
        if len(written) > self.max_length:
            raise wrong(f"must have at most {self.max_length} characters, has {len(written)}")
        if not re.fullmatch(self.pattern, written):
            raise wrong(f"must be {self.says}, is {shown(written)}")
        return written

    def json_schema(self) -> JsonSchemaValue:
        """The pattern twice: for tools that know only patterns, and as a rule that says what would be right."""
        rule = {"rule": f"self.matches({cel_text(self.pattern)})", "message": f"must be {self.says}"}
        return {
            "type": "string",
            "maxLength": self.max_length,
            "pattern": self.pattern,
            "x-kubernetes-validations": [rule],
        }


@dataclass(frozen=True)
class _Bounded(_Unit):
    """A measure between two bounds, both written as a person would."""

    minimum: str
    maximum: str

    pattern: ClassVar[str]
    what: ClassVar[str]
    within: ClassVar[str]
    """CEL, true when `self` (which matches the pattern) lies between `{minimum}` and `{maximum}`."""

    @staticmethod
    @abstractmethod
    def exact(written: str) -> Decimal:
        """The measure in its base unit, not rounded."""

    def checked(self, written: object) -> Decimal:
        """`exact`, once it is known to be well written and within the bounds."""
        if not isinstance(written, str):
            raise wrong(f"{self._wanted}; is {kind_of(written)}")
        if not re.fullmatch(self.pattern, written):
            raise wrong(f"{self._wanted}; is {shown(written)}")
        value = self.exact(written)
        if not self.exact(self.minimum) <= value <= self.exact(self.maximum):
            raise wrong(f"{self._wanted}; is {shown(written)}")
        return value

    @property
    def _wanted(self) -> str:
        return f"must be {self.what}, from {self.minimum} to {self.maximum}"

    def json_schema(self) -> JsonSchemaValue:
        """A string with a pattern, and a rule for the bounds."""
        bounds = self.within.format(minimum=cel_text(self.minimum), maximum=cel_text(self.maximum))
        rule = {
            "rule": f"self.matches({cel_text(self.pattern)}) && {bounds}",
            "messageExpression": f"{cel_text(self._wanted + '; is ' + chr(34))} + self + {cel_text(chr(34))}",
        }
        return {"type": "string", "maxLength": 32, "pattern": self.pattern, "x-kubernetes-validations": [rule]}


@dataclass(frozen=True)
class Size(_Bounded):
    """Bytes, written as Kubernetes does: "10Gi", "500M", "1.5Gi". Fractions of a byte are rounded up."""

    pattern = r"^[0-9]{1,15}([.][0-9]{1,3})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
    what = "a size such as 10Gi or 512Mi"
    within = "quantity(self).compareTo(quantity({minimum})) >= 0 && quantity(self).compareTo(quantity({maximum})) <= 0"

    @staticmethod
    def exact(written: str) -> Decimal:
        """Bytes."""
        number = written.rstrip("KMGTPik")
        return Decimal(number) * _BYTES[written[len(number) :]]

    def parse(self, written: object) -> int:
        """Whole bytes."""
        return int(self.checked(written).to_integral_value(ROUND_CEILING))

    def format(self, value: int) -> str:
        """With the largest unit that leaves no remainder."""
        units = sorted(_BYTES.items(), key=lambda u: -u[1])
        return next(f"{value // size}{unit}" for unit, size in units if value % size == 0 and (value or size == 1))


@dataclass(frozen=True)
class Duration(_Bounded):
    """Seconds, written as Go does: "500ms", "3s", "1h30m"."""

    pattern = r"^([0-9]{1,6}([.][0-9]{1,3})?(ms|s|m|h)){1,4}$"
    what = "a duration such as 500ms, 3s or 15m"
    within = "duration(self) >= duration({minimum}) && duration(self) <= duration({maximum})"

    @staticmethod
    def exact(written: str) -> Decimal:
        """Seconds."""
        return sum((Decimal(n) * _SECONDS[u] for n, u in re.findall(r"([0-9.]+)(ms|s|m|h)", written)), Decimal())

    def parse(self, written: object) -> float:
        """Seconds."""
        return float(self.checked(written))

    def format(self, value: float) -> str:
        """From hours down to milliseconds, without those that are zero."""
        rest, written = Decimal(str(value)), ""
        for unit, size in sorted(_SECONDS.items(), key=lambda u: -u[1]):
            amount = rest / size if unit == "ms" else rest // size
            rest -= amount * size
            written += f"{amount.normalize():f}{unit}" if amount else ""
        return written or "0s"


class Percent(_Unit):
    """A fraction of one, written as a percentage: "80%" is 0.8."""

    _AS_TEXT = Text(r"^([1-9][0-9]?|100)%$", "a percentage from 1% to 100%", max_length=4)

    def parse(self, written: object) -> float:
        """A fraction of one."""
        return int(self._AS_TEXT.parse(written).removesuffix("%")) / 100

    def format(self, value: float) -> str:
        """Whole percents."""
        return f"{round(value * 100)}%"

    def json_schema(self) -> JsonSchemaValue:
        """A string with a pattern."""
        return self._AS_TEXT.json_schema()


Shards: TypeAlias = int | Literal["auto"]


class ShardCount(_Unit):
    """A number of shards, or "auto"."""

    _WANTED = f'must be "auto" or a whole number from 1 to {MAX_SHARDS}'

    def parse(self, written: object) -> Shards:
        """The number, or "auto"."""
        if written == "auto":
            return "auto"
        if isinstance(written, int) and not isinstance(written, bool) and 1 <= written <= MAX_SHARDS:
            return written
        raise wrong(f"{self._WANTED}, is {shown(written)}")

    def json_schema(self) -> JsonSchemaValue:
        """Two types, which a structural schema can only say as int-or-string with a rule."""
        rule = f"type(self) == int ? self >= 1 && self <= {MAX_SHARDS} : self == 'auto'"
        return {
            "x-kubernetes-int-or-string": True,
            "x-kubernetes-validations": [{"rule": rule, "message": self._WANTED}],
        }


class Quantity(_Unit):
    """A Kubernetes quantity of anything ("500m", "2", "1Gi"), kept as it was written."""

    _PATTERN = r"^[0-9]{1,15}([.][0-9]{1,9})?(m|Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
    _WANTED = "must be a quantity such as 500m, 2 or 4Gi"

    def parse(self, written: object) -> int | str:
        """The same value."""
        if isinstance(written, int) and not isinstance(written, bool) and written >= 0:
            return written
        if isinstance(written, str) and re.fullmatch(self._PATTERN, written):
            return written
        raise wrong(f"{self._WANTED}, is {shown(written)}")

    def json_schema(self) -> JsonSchemaValue:
        """Two types, as Kubernetes has it for its own quantities."""
        return {"x-kubernetes-int-or-string": True, "pattern": self._PATTERN, "minimum": 0}


class Anything(_Unit):
    """An object that Kubernetes checks, not we: part of a pod."""

    def parse(self, written: object) -> dict[str, Any]:
        """The same object."""
        if not isinstance(written, dict):
            raise wrong(f"must be an object, is {kind_of(written)}")
        return written

    def json_schema(self) -> JsonSchemaValue:
        """Its fields are kept although the schema does not know them."""
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
