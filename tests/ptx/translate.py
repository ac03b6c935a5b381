#!/usr/bin/env python3
"""Translates PTX, as LLVM writes it, to C for runtime.h. Instructions it does not know are an error."""

import re
import sys

INTEGERS = {f"{kind}{bits}": f"{'int' if kind == 's' else 'uint'}{bits}_t" for kind in "bus" for bits in (8, 16, 32, 64)}
FLOATS = {"f16": "uint16_t", "bf16": "uint16_t", "f32": "uint32_t", "f64": "uint64_t"}
PAIRS = {"f16x2": "uint32_t", "bf16x2": "uint32_t"}
# The C type of a register: floats are kept as their bits.
TYPES = INTEGERS | FLOATS | PAIRS | {"pred": "int"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
               "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# The words behind an instruction's name that are understood, types apart; others are an error.
ROUNDING = {"rn", "rz", "rm", "rp"}
ACCESS = {"param", "global", "shared", "local", "const", "nc", "v2", "v4", "v8", "relaxed", "acquire", "release", "volatile",
          "cta", "gpu", "sys"}
ATOMICS = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "acq_rel", "noftz"}
SYNC = {"sync", "aligned"}
WORDS = {
    "ld": ACCESS, "st": ACCESS, "atom": ACCESS | ATOMICS, "red": ACCESS | ATOMICS, "cvta": ACCESS | {"to"},
    "fence": ACCESS | {"acq_rel", "sc"}, "membar": {"gl", "cta", "sys"},
    "bar": SYNC | {"red", "or", "and", "popc", "warp"}, "barrier": SYNC | {"red", "or", "and", "popc"},
    "shfl": SYNC | {"idx", "up", "down", "bfly"}, "vote": SYNC | {"all", "any", "ballot"},
    "bra": {"uni"}, "brx": {"idx"}, "call": {"uni"}, "ret": {"uni"},
    "setp": set(COMPARISONS) | {"equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan", "and", "or", "xor"},
    "testp": {"finite", "infinite", "notanumber", "number", "normal"},
    "cvt": {"rn", "rni", "rzi", "rmi", "rpi", "ftz", "sat"},
    "add": ROUNDING | {"ftz", "cc"}, "addc": {"cc"}, "sub": ROUNDING | {"ftz"}, "fma": ROUNDING | {"ftz"}, "sqrt": ROUNDING | {"ftz", "approx"},
    "mul": ROUNDING | {"ftz", "lo", "hi", "wide"}, "mad": {"lo", "hi", "wide", "cc"},
    "madc": {"lo", "hi", "cc"},
    "div": ROUNDING | {"ftz", "approx", "full"}, "rcp": ROUNDING | {"ftz", "approx"},
    "rsqrt": {"ftz", "approx"}, "ex2": {"ftz", "approx"}, "lg2": {"ftz", "approx"}, "tanh": {"approx"},
    "sin": {"ftz", "approx"}, "cos": {"ftz", "approx"}, "min": {"NaN", "ftz"}, "max": {"NaN", "ftz"},
    "shf": {"l", "r", "wrap", "clamp"},
}


class Unknown(Exception):
    pass


def bits(type_):
    return 32 if type_ in PAIRS else int(re.sub(r"\D", "", type_))


def identifier(name):
    return re.sub(r"\W", "_", name)


def listed(text):
    """The parts between the commas that stand in no bracket."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


class Module:
    def __init__(self, source):
        source = re.sub(r"/\*.*?\*/|//[^\n]*", "", source, flags=re.S)
        self.meetings = 0
        self.globals = []
        self.functions = []
        outside, at = "", 0
        for match in re.finditer(r"\.(entry|func)\b([^{};]*)\{", source):
            if match.start() < at:
                continue
            depth, end = 1, match.end()
            while depth:
                depth += (source[end] == "{") - (source[end] == "}")
                end += 1
            outside += source[at:match.start()]
            at = end
            self.functions.append((match.group(1), match.group(2), source[match.end():end - 1]))
        self.declare_variables(outside + source[at:])

    def declare_variables(self, text):
        # The block of shared memory that a launch sizes, and tables.
        self.shared = re.findall(r"\.extern\s+\.shared[^;]*?([\w$.]+)\[\];", text)
        if re.search(r"^\s*(?:\.visible )?\.shared", text, re.M):
            raise Unknown("shared memory of a fixed size")
        self.tables = []
        for type_, name, size, values in re.findall(
            r"\.(?:global|const)\s+(?:\.align \d+\s+)?\.(\w+)\s+([\w$.]+)\[(\d+)\]\s*=\s*\{([^}]*)\}", text
        ):
            self.tables.append(name)
            self.globals.append(f"static {TYPES[type_]} __attribute__((aligned(16))) g_{identifier(name)}[{size}] = {{{values}}};")

    def c(self):
        bodies = [Function(self, *function) for function in self.functions]
        texts = [body.c() for body in bodies]
        return "\n".join(['#include "runtime.h"', *self.globals, *(body.head + ";" for body in bodies), *texts,
                          f"int meets = {int(self.meetings > 0)};", ""])


class Function:
    def __init__(self, module, kind, header, body):
        self.module, self.body = module, body
        result, self.name, params = re.match(r"\s*(?:\((.*?)\))?\s*([\w$.]+)\s*(?:\((.*?)\))?", header, re.S).groups()
        self.is_entry = kind == "entry"
        last_name = lambda text: re.search(r"([\w$.]+)\s*(?:\[\d+\])?\s*$", text).group(1)
        self.result = last_name(result) if result and result.strip() else None
        self.params = {last_name(param): i for i, param in enumerate(listed(params or ""))}
        # Registers and their types, by name; families of registers, by prefix.
        self.registers, self.families = {}, {}
        # Memory of a thread, and arguments of calls: names and bytes.
        self.arrays = {}
        self.head = (f"void entry_{identifier(self.name)}(Thread *t)" if self.is_entry
                     else f"static void func_{identifier(self.name)}(Thread *t, void *result, void **params)")

    def c(self):
        body = self.body
        for type_, names in re.findall(r"\.reg\s+\.(\w+)\s+([^;]+);", body):
            for name in listed(names):
                family = re.fullmatch(r"(%[\w$]+)<\d+>", name)
                (self.families if family else self.registers)[family.group(1) if family else name] = type_
        array = r"\.(?:local|param)\s+(?:\.align \d+\s+)?\.(\w+)\s+([\w$.]+)(?:\[(\d+)\])?;"
        for type_, name, size in re.findall(array, body):
            self.arrays[name] = max(self.arrays.get(name, 0), int(size or 1) * bits(type_) // 8)
        body = re.sub(rf"\.reg\s+[^;]+;|{array}|\.(?:loc|pragma|file)\b[^\n]*", "", body)
        self.targets = {name: listed(labels) for name, labels in
                        re.findall(r"([$\w]+)\s*:\s*\.branchtargets([^;]*);", body)}
        body = re.sub(r"[$\w]+\s*:\s*\.branchtargets[^;]*;", "", body)
        lines = []
        for part in re.split(r";|(\n\s*[$\w]+:)", body):
            # Braces around a call say nothing more; those of a vector stand behind other text.
            text = re.sub(r"^[{}\s]+", "", part or "").strip()
            if re.fullmatch(r"[$\w]+:", text):
                lines.append(f"L_{identifier(text[:-1])}:;")
            elif text:
                lines.append(self.statement(text))
        registers = [f"{TYPES[type_]} {self.c_name(name)};" for name, type_ in sorted(self.registers.items())]
        arrays = [f"char __attribute__((aligned(16))) a_{identifier(name)}[{size}];" for name, size in self.arrays.items()]
        return "\n    ".join([self.head + " {", "uint64_t carry = 0;", *registers, *arrays, *lines]) + "\n}\n"

    # --- Operands ---

    @staticmethod
    def c_name(register):
        return "r_" + identifier(register[1:])

    def register(self, name):
        if name not in self.registers:
            family = next((f for f in self.families if re.fullmatch(re.escape(f) + r"\d+", name)), None)
            if family is None:
                raise Unknown("register " + name)
            self.registers[name] = self.families[family]
        return self.c_name(name)

    def value(self, operand, type_):
        """An operand as bits."""
        base, _, axis = operand.partition(".")
        if base in ("%tid", "%ntid", "%ctaid", "%nctaid"):
            return f"t->{base[1:]}[{'xyz'.index(axis)}]"
        if operand in ("%laneid", "%warpid"):
            return {"%laneid": "t->lane", "%warpid": "t->warp"}[operand]
        if operand.startswith("!%"):
            return "!" + self.register(operand[1:])
        if operand.startswith("%"):
            return self.register(operand)
        if match := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})|0[dD]([0-9A-Fa-f]{16})", operand):
            return f"0x{match.group(1)}u" if match.group(1) else f"0x{match.group(2)}ull"
        if re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?", operand):
            return f"(({TYPES[type_]}){operand.rstrip('U')}ll)"
        if operand in self.module.shared:
            return "((uint64_t)t->shared)"
        if operand in self.module.tables:
            return f"((uint64_t)g_{identifier(operand)})"
        if operand in self.arrays:
            return f"((uint64_t)a_{identifier(operand)})"
        if operand in self.params:
            return f"((uint64_t){'t->' if self.is_entry else ''}params[{self.params[operand]}])"
        if operand == self.result:
            return "((uint64_t)result)"
        if match := re.fullmatch(r"(.+?)(?:\+|(?=-))(-?\d+)", operand):
            return f"({self.value(match.group(1), 'u64')} + ({match.group(2)}))"
        raise Unknown("operand " + operand)

    def number(self, operand, type_):
        """An operand as a C number of a type."""
        value = self.value(operand, type_)
        return f"from_{type_}({value})" if type_ in FLOATS else f"(({TYPES[type_]}){value})"

    def address(self, operand):
        base, _, offset = operand.strip("[] ").partition("+")
        return f"((char *)({self.value(base.strip(), 'u64')}) + {offset or 0})"

    def set(self, register, value, type_="b64"):
        return f"{self.register(register)} = {f'to_{type_}({value})' if type_ in FLOATS else value};"

    def meet(self, kind, value="0", by="0", bounds="0"):
        self.module.meetings += 1
        return f"t->meet(t, {kind}, {self.module.meetings}, {value}, {by}, {bounds})"

    # --- Instructions ---

    def statement(self, text):
        guard, rest = re.match(r"(@!?%[\w$]+)?\s*(.*)", text, re.S).groups()
        name, operands = re.match(r"([\w.:]+)\s*(.*)", rest, re.S).groups()
        words, operands = name.split("."), listed(operands)
        try:
            unknown = set(words[1:]) - set(TYPES) - WORDS.get(words[0], set())
            if unknown:
                raise Unknown(" and ".join(sorted(unknown)))
            code = self.instruction(words, operands)
        except (Unknown, KeyError, IndexError, StopIteration, ValueError) as error:
            raise Unknown(f"{text}: {error!r}") from error
        condition = f"if ({self.value(guard[1:], 'pred')}) " if guard else ""
        return f"{condition}{{ {code} }}"

    def instruction(self, words, operands):
        name, type_ = words[0], words[-1]
        if handler := getattr(self, "do_" + name, None):
            return handler(words, operands)
        if type_ in FLOATS:
            return self.floating(words, operands)
        if type_ in PAIRS:
            return self.pair(words, operands)
        if type_ == "pred":
            values = [self.value(operand, "pred") for operand in operands[1:]]
            operator = {"and": "&&", "or": "||", "xor": "!="}.get(name)
            return self.set(operands[0], f"!{values[0]}" if name == "not" else f"!!{values[0]} {operator} !!{values[1]}")
        return self.integer(words, operands)

    def do_ret(self, words, operands):
        return "return;"

    do_exit = do_ret

    def do_trap(self, words, operands):
        return "__builtin_trap();"

    def do_fence(self, words, operands):
        return ""

    do_membar = do_fence

    def do_bra(self, words, operands):
        return f"goto L_{identifier(operands[0])};"

    def do_brx(self, words, operands):
        cases = [f"case {i}: goto L_{identifier(label)};" for i, label in enumerate(self.targets[operands[1]])]
        return f"switch ({self.value(operands[0], 'u32')}) {{ {' '.join(cases)} }}"

    def do_call(self, words, operands):
        result = operands.pop(0).strip("() ") if operands[0].startswith("(") else None
        arguments = listed(operands[1][1:-1]) if len(operands) > 1 else []
        names = ", ".join(f"a_{identifier(argument)}" for argument in arguments) or "0"
        into = f"a_{identifier(result)}" if result else "0"
        return f"void *arguments[] = {{{names}}}; func_{identifier(operands[0])}(t, {into}, arguments);"

    def do_bar(self, words, operands):
        if "warp" in words:
            return self.meet("WARP_BARRIER") + ";"
        if "red" in words:
            kind = "BARRIER_" + next(word for word in words if word in ("or", "and", "popc")).upper()
            return self.set(operands[0], self.meet(kind, self.value(operands[-1], "pred")))
        if operands != ["0"]:
            raise Unknown("a barrier of some threads")
        return self.meet("BARRIER") + ";"

    do_barrier = do_bar

    def do_shfl(self, words, operands):
        kind = "SHUFFLE_" + next(word for word in words if word in ("idx", "up", "down", "bfly")).upper()
        into, _, valid = operands[0].partition("|")
        code = f"uint64_t answer = {self.meet(kind, *(self.value(operand, 'b32') for operand in operands[1:4]))}; "
        code += self.set(into, "(uint32_t)answer")
        return code + (" " + self.set(valid, "answer >> 32 & 1") if valid else "")

    def do_vote(self, words, operands):
        kind = "VOTE_" + next(word for word in words if word in ("all", "any", "ballot")).upper()
        return self.set(operands[0], self.meet(kind, self.value(operands[1], "pred")))

    def do_activemask(self, words, operands):
        return self.set(operands[0], self.meet("ACTIVE_MASK"))

    def do_mov(self, words, operands):
        into, source = operands
        type_ = words[-1]
        if into.startswith("{"):
            parts = listed(into[1:-1])
            size = bits(type_) // len(parts)
            code = [self.set(part, f"(uint{size}_t)(whole >> {size * i})") for i, part in enumerate(parts) if part != "_"]
            return f"{TYPES[type_]} whole = {self.value(source, type_)}; {' '.join(code)}"
        if source.startswith("{"):
            parts = listed(source[1:-1])
            size = bits(type_) // len(parts)
            return self.set(into, " | ".join(f"({TYPES[type_]})(uint{size}_t){self.value(part, f'b{size}')} << {size * i}"
                                             for i, part in enumerate(parts)))
        return self.set(into, self.value(source, type_))

    def do_cvta(self, words, operands):
        return self.set(operands[0], self.value(operands[1], words[-1]))

    def do_ld(self, words, operands):
        parts = listed(operands[0][1:-1]) if operands[0].startswith("{") else [operands[0]]
        code = [self.set(part, f"parts[{i}]") for i, part in enumerate(parts) if part != "_"]
        return f"{self.memory(words, len(parts), operands[1])} memcpy(parts, address, sizeof parts); {' '.join(code)}"

    def do_st(self, words, operands):
        parts = listed(operands[1][1:-1]) if operands[1].startswith("{") else [operands[1]]
        code = [f"parts[{i}] = {self.value(part, words[-1])};" for i, part in enumerate(parts)]
        return f"{self.memory(words, len(parts), operands[0])} {' '.join(code)} memcpy(address, parts, sizeof parts);"

    def memory(self, words, count, operand):
        type_ = words[-1]
        # A misaligned access is a fault on the device.
        return (f"{TYPES[type_]} parts[{count}]; char *address = {self.address(operand)}; "
                "if ((uint64_t)address % sizeof parts) __builtin_trap();")

    def do_atom(self, words, operands):
        type_ = words[-1]
        into = operands.pop(0) if words[0] == "atom" else None
        name = next(word for word in words if word in ("add", "min", "max", "and", "or", "xor", "exch", "cas"))
        old, new = ("from_" + type_ + "(old)" if type_ in FLOATS else "old"), self.number(operands[1], type_)
        result = {
            "add": f"{old} + {new}", "min": f"{old} < {new} ? {old} : {new}", "max": f"{old} > {new} ? {old} : {new}",
            "and": f"{old} & {new}", "or": f"{old} | {new}", "xor": f"{old} ^ {new}", "exch": new,
            "cas": f"{old} == {new} ? {self.number(operands[2], type_) if name == 'cas' else ''} : {old}",
        }[name]
        result = f"to_{type_}({result})" if type_ in FLOATS else result
        code = f"{TYPES[type_]} *address = (void *){self.address(operands[0])}, old = *address; *address = {result};"
        return code + (" " + self.set(into, "old") if into and into != "_" else "")

    do_red = do_atom

    def do_selp(self, words, operands):
        then, otherwise = (self.value(operand, words[-1]) for operand in operands[1:3])
        return self.set(operands[0], f"{self.value(operands[3], 'pred')} ? {then} : {otherwise}")

    def do_setp(self, words, operands):
        type_, name = words[-1], words[1]
        a, b = (self.number(operand, type_) for operand in operands[1:3])
        unordered = f"(isnan({a}) || isnan({b}))"
        if type_ not in FLOATS or name in ("eq", "lt", "le", "gt", "ge"):
            code = f"({a} {COMPARISONS[name]} {b})"
        elif name in ("num", "nan"):
            code = unordered if name == "nan" else "!" + unordered
        elif name == "ne":
            code = f"(!{unordered} && {a} != {b})"
        else:
            code = f"({unordered} || {a} {COMPARISONS[name[:-1]]} {b})"
        if words[2] in ("and", "or", "xor"):
            other = self.value(operands[3], "pred")
            code = f"({code} {({'and': '&&', 'or': '||', 'xor': '!='})[words[2]]} !!{other})"
        return self.set(operands[0], code)

    def do_cvt(self, words, operands):
        types = [word for word in words if word in TYPES]
        to, from_ = types[0], types[-1]
        if to in PAIRS:
            high, low = (f"(uint32_t)to_{to[:-2]}({self.number(operand, 'f32')})" for operand in operands[1:3])
            return self.set(operands[0], f"{high} << 16 | {low}")
        value = self.number(operands[1], from_)
        rounding = next((word for word in words if word in ("rni", "rzi", "rmi", "rpi")), None)
        rounded = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}.get(rounding)
        if to in FLOATS:
            if (from_ == "f64" and to in ("f16", "bf16")):
                raise Unknown("two roundings")
            value = f"{rounded}({value})" if rounded else value
            value = f"least(most({value}, 0), 1)" if "sat" in words else value
            return self.set(operands[0], f"flushed({value})" if "ftz" in words else value, to)
        if from_ in FLOATS and rounded and bits(from_) <= 32 and bits(to) <= 32:
            return self.set(operands[0], f"({TYPES[to]})to_integer({rounded}({value}), {bits(to)}, {int(to[0] == 's')})")
        if "sat" in words or from_ in FLOATS:
            raise Unknown("this conversion")
        return self.set(operands[0], f"({TYPES[to]}){value}")

    def do_copysign(self, words, operands):
        type_ = words[-1]
        sign, size = (self.number(operand, type_) for operand in operands[1:3])
        return self.set(operands[0], f"copysign({size}, {sign})", type_)

    def do_testp(self, words, operands):
        test = {"finite": "isfinite", "infinite": "isinf", "notanumber": "isnan", "number": "!isnan", "normal": "isnormal"}
        return self.set(operands[0], f"!!{test[words[1]]}({self.number(operands[1], words[-1])})")

    def arithmetic(self, words, x, type_):
        """A number made of numbers; of halves, their floats."""
        name, suffix = words[0], "" if type_ == "f64" else "f"
        one = "1.0" + suffix
        if name in ("min", "max"):
            function = ("least" if name == "min" else "most") + ("_or_nan" if "NaN" in words else "")
            return f"{function}({x[0]}, {x[1]})"
        if name in ("fma", "mad"):
            # A product of halves is exact in double precision.
            return f"(float)((double){x[0]} * {x[1]} + {x[2]})" if bits(type_) == 16 else f"fma{suffix}({x[0]}, {x[1]}, {x[2]})"
        return {
            "add": lambda: f"{x[0]} + {x[1]}", "sub": lambda: f"{x[0]} - {x[1]}", "mul": lambda: f"{x[0]} * {x[1]}",
            "div": lambda: f"{x[0]} / {x[1]}", "neg": lambda: f"-{x[0]}", "abs": lambda: f"fabs{suffix}({x[0]})",
            "rcp": lambda: f"{one} / {x[0]}", "sqrt": lambda: f"sqrt{suffix}({x[0]})",
            "rsqrt": lambda: f"1 / sqrt((double){x[0]})", "ex2": lambda: f"exp2((double){x[0]})",
            "lg2": lambda: f"log2((double){x[0]})", "tanh": lambda: f"tanh((double){x[0]})",
            "sin": lambda: f"sin((double){x[0]})", "cos": lambda: f"cos((double){x[0]})",
        }[name]()

    def floating(self, words, operands):
        type_ = words[-1]
        if words[0] in ("neg", "abs") and type_ == "f32":
            # Of NaN too only the sign changes.
            change = "^ 0x80000000u" if words[0] == "neg" else "& 0x7fffffffu"
            return self.set(operands[0], f"{self.value(operands[1], type_)} {change}")
        x = [self.number(operand, type_) for operand in operands[1:]]
        if "ftz" in words:
            x = [f"flushed({number})" for number in x]
        code = self.arithmetic(words, x, type_)
        if mode := {"rz": "FE_TOWARDZERO", "rm": "FE_DOWNWARD", "rp": "FE_UPWARD"}.get(words[1]):
            number = "double" if type_ == "f64" else "float"
            code = f"({{ fesetround({mode}); volatile {number} rounded = {code}; fesetround(FE_TONEAREST); rounded; }})"
        if "sat" in words:
            code = f"least(most({code}, 0), 1)"
        return self.set(operands[0], f"flushed({code})" if "ftz" in words else code, type_)

    def pair(self, words, operands):
        type_ = words[-1][:-2]
        halves = []
        for shift in (16, 0):
            x = [f"from_{type_}((uint16_t)({self.value(operand, 'b32')} >> {shift}))" for operand in operands[1:]]
            halves.append(f"(uint32_t)to_{type_}({self.arithmetic(words, x, type_)})")
        return self.set(operands[0], f"{halves[0]} << 16 | {halves[1]}")

    def integer(self, words, operands):
        name, type_ = words[0], words[-1]
        size, x = bits(type_), [self.number(operand, type_) for operand in operands[1:]]
        raw = [self.value(operand, "b32") for operand in operands[1:]]
        if name in ("addc", "madc") or "cc" in words:
            return self.carrying(words, operands[0], raw)
        if name in ("mul", "mad"):
            # Of twice the size; signed and unsigned ones differ in their upper half.
            wide = {16: "int32_t", 32: "int64_t", 64: "__int128"}[size]
            wide = wide if type_[0] == "s" else "unsigned __int128" if size == 64 else "u" + wide
            product = f"({wide}){x[0]} * ({wide}){x[1]}"
            product = f"(({product}) >> {size})" if "hi" in words else product
            added = f" + {self.value(operands[3], 'u64')}" if name == "mad" else ""
            result = TYPES[f"{type_[0]}{2 * size}" if "wide" in words else type_]
            return self.set(operands[0], f"({result})({product}){added}")
        shift = f"({raw[1]})" if len(raw) > 1 else ""
        code = {
            "add": lambda: f"{x[0]} + {x[1]}", "sub": lambda: f"{x[0]} - {x[1]}",
            "div": lambda: f"{x[1]} ? {x[0]} / {x[1]} : -1", "rem": lambda: f"{x[1]} ? {x[0]} % {x[1]} : 0",
            "min": lambda: f"{x[0]} < {x[1]} ? {x[0]} : {x[1]}", "max": lambda: f"{x[0]} > {x[1]} ? {x[0]} : {x[1]}",
            "abs": lambda: f"{x[0]} < 0 ? -{x[0]} : {x[0]}", "neg": lambda: f"-{x[0]}", "not": lambda: f"~{x[0]}",
            "and": lambda: f"{x[0]} & {x[1]}", "or": lambda: f"{x[0]} | {x[1]}", "xor": lambda: f"{x[0]} ^ {x[1]}",
            "shl": lambda: f"{shift} < {size} ? {x[0]} << {shift} : 0",
            "shr": lambda: f"{x[0]} >> ({shift} < {size} ? {shift} : {size - 1}) >> ({shift} < {size} ? 0 : 1)",
            "popc": lambda: f"__builtin_popcountll({x[0]})",
            "clz": lambda: f"{x[0]} ? __builtin_clzll({x[0]}) - {64 - size} : {size}",
            "prmt": lambda: f"permuted_bytes((uint32_t){raw[0]} | (uint64_t)(uint32_t){raw[1]} << 32, {raw[2]})",
            "shf": lambda: self.funnel(words, raw), "lop3": lambda: self.table_of_three(raw, int(operands[4], 0)),
        }[name]
        return self.set(operands[0], f"({TYPES[type_]})({code()})")

    def carrying(self, words, into, raw):
        if words[-1] == "s32" and "hi" in words or bits(words[-1]) != 32 or "wide" in words:
            raise Unknown("this width with a carry")
        a, b, c = [f"(uint64_t)(uint32_t){operand}" for operand in (raw if "mad" in words[0] else [raw[0], "1", raw[1]])]
        product = f"({a} * {b} >> 32)" if "hi" in words else f"(uint64_t)(uint32_t)({a} * {b})"
        start = " + carry" if words[0] in ("addc", "madc") else ""
        return f"uint64_t sum = {product} + {c}{start}; {self.set(into, '(uint32_t)sum')} carry = sum >> 32;"

    @staticmethod
    def funnel(words, raw):
        both = f"((uint64_t)(uint32_t){raw[1]} << 32 | (uint32_t){raw[0]})"
        amount = f"({raw[2]} & 31)" if "wrap" in words else f"({raw[2]} > 32 ? 32 : {raw[2]})"
        return f"(uint32_t)({both} >> {amount})" if "r" in words else f"(uint32_t)({both} >> (32 - {amount}))"

    @staticmethod
    def table_of_three(raw, table):
        rows = [" & ".join(("" if row >> (2 - i) & 1 else "~") + f"(uint32_t){raw[i]}" for i in range(3))
                for row in range(8) if table >> row & 1]
        return " | ".join(f"({row})" for row in rows) or "0"


if __name__ == "__main__":
    try:
        print(Module(open(sys.argv[1]).read().rstrip("\0")).c())
    except Unknown as error:
        sys.exit(f"{sys.argv[1]}: {error}")
