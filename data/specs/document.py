"""A YAML file whose values remember the line they stand in."""

import reprlib

import yaml

from utils.errors import UserError

shown = reprlib.repr  # a few lines of YAML can stand for a text without end


class Document:
    """The mapping in the YAML file ``path``: ``values`` are plain, and ``error`` names the line of any of them."""

    def __init__(self, path):
        self.path = path
        try:
            text = path.read_bytes().decode("utf-8-sig")
            loader = yaml.SafeLoader(text)
            self._root = loader.get_single_node()
            self._refuse_double_keys()
            self.values = None if self._root is None else loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(filter(None, (error.context, error.problem)))
            raise UserError(f"{path}, line {mark.line + 1 if mark else 1}: not valid YAML: "
                            f"{what}{_hint(what)}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise UserError(f"{path}, line {line}: not valid YAML: a control character; delete it") from error
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise UserError(f"{path}, line {line}: the file is not UTF-8 text; save it as UTF-8") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"{path}, line 1: not valid YAML: {error!s:.200}") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error

    def error(self, keys, what):
        """A ``UserError`` about the value at ``keys``, a tuple of keys of mappings and indices of lists, () for all."""
        return UserError(f"{self.path}, line {self._line(keys)}: {what}")

    def _line(self, keys):
        node, line = self._root, 1 if self._root is None else self._root.start_mark.line + 1
        for key in keys:  # as far as the nodes go: a value that another stands for has its own line
            node = _child(node, key)
            if node is None:
                break
            line = node.start_mark.line + 1
        return line

    def _refuse_double_keys(self):
        """Of two equal keys YAML takes the last, silently. Looks at the mapping and at mappings in lists in it."""
        nodes = [self._root]
        if isinstance(self._root, yaml.MappingNode):
            for _, value in self._root.value:
                nodes += value.value if isinstance(value, yaml.SequenceNode) else [value]
        for node in nodes:
            lines = {}
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                line, name = key.start_mark.line + 1, str(key.value)
                if name in lines:
                    raise UserError(f"{self.path}, line {line}: the key {shown(name)} already stands in line "
                                    f"{lines[name]}; delete one of the two")
                lines[name] = line


def _child(node, key):
    """The node of a key or index, or None."""
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key]
    found = None
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:  # the last one counts: merged keys come first
            if getattr(key_node, "value", None) == str(key):
                found = value
    return found


def _hint(what):
    if "'\\t'" in what:
        return "; indent with blanks, not with tabs"
    return ("; look at this line and the one before it: brackets, a blank after each colon, quotes (a text that begins "
            "with { or stands in brackets needs them, as in '{name}.jpg')")
