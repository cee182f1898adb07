"""The keywords of JSON schema that say what a value may be, and where they hold schemas."""

from __future__ import annotations

SINGLE = frozenset(
    {
        *("items", "additionalItems", "unevaluatedItems", "contains"),
        *("additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("not", "if", "then", "else"),
    }
)
"""Keywords that hold one schema."""

LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords that hold a list of schemas."""

MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})
"""Keywords that hold schemas by name."""

IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "$ref", "not", "if", "then", "else"}) | {
    *("dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef")
}
"""Keywords that hold, or lead to, schemas of the same value."""

REFUSED = (SINGLE - {"items", "additionalProperties"}) | {
    *("dependentSchemas", "dependentRequired", "dependencies")
}
"""Keywords with schemas that no grammar enforces, so that they are refused wherever they stay."""

COUNTS = frozenset(
    {
        *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        *("minContains", "maxContains"),
    }
)
"""Keywords whose value is a number of things."""

KEYWORDS = (
    SINGLE
    | LISTS
    | MAPS
    | IN_PLACE
    | COUNTS
    | {
        *("type", "enum", "const", "required", "dependentRequired", "uniqueItems"),
        *("pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
"""All of them. Any other key is a note, for readers or other tools."""
