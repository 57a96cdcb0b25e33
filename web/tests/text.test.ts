import assert from "node:assert/strict";
import { test } from "node:test";
import { place } from "../src/data.ts";
import { csv } from "../src/save.ts";
import { read, type State, VIEW, written } from "../src/state.ts";
import { chance, fixed, interval, shown, signed, tidy } from "../src/text.ts";

const token = (text: string | null) => ({ id: 7, text });

test("what would not show is spelled out", () => {
  assert.equal(shown(token("\n\t")), "\u21b5\u21e5");
  assert.equal(shown(token("\u0000\u001b")), "\u2400\u241b");
  assert.equal(shown(token("a\u202eb")), "a\u27e8U+202E\u27e9b");
  assert.equal(shown(token("\ud800x")), "\ufffdx");
  assert.equal(shown(token("")), "\u2205");
  assert.equal(shown(token(null)), "#7");
});

test("a name keeps its order and its length", () => {
  assert.equal(tidy("a \u202eb\ud800 c".repeat(20)), "a \u27e8U+202E\u27e9b\ufffd c".repeat(20));
});

test("a leading space is marked only where it is asked for", () => {
  assert.equal(shown(token(" the")), "the");
  assert.equal(shown(token(" the"), true), "\u2423the");
  assert.equal(shown(token(" ")), "\u2423");
  assert.equal(shown(token(`\n${" ".repeat(12)}`), true), "\u21b5\u2423\u00d712");
});

test("a long token is cut between characters, not within one", () => {
  assert.equal(shown(token("x".repeat(10_000))), `${"x".repeat(24)}\u2026`);
  assert.equal(shown(token("\u{1f600}".repeat(30))), `${"\u{1f600}".repeat(24)}\u2026`);
});

test("numbers have a real minus sign, and zero has none", () => {
  assert.equal(fixed(-1.234, 2), "\u22121.23");
  assert.equal(fixed(-0.0001, 2), "0.00");
  assert.equal(signed(0.5, 1), "+0.5");
  assert.equal(signed(0, 1), "0.0");
  assert.equal(interval({ mean: 0.5, ci95: [0.4, 0.6] }, 1), "0.5 [0.4, 0.6]");
  assert.equal(interval({ mean: 0.5, ci95: null }, 1), "0.5");
});

test("a small probability keeps a digit", () => {
  assert.deepEqual([0, 0.0001, 0.012, 0.0996, 0.5, 1].map(chance), ["0.0%", "<0.1%", "1.2%", "10%", "50%", "100%"]);
});

test("a state comes back from its address", () => {
  const start: State = { ...VIEW, text: "start", head: "L0H0", off: [], method: "mean", picked: [] };
  const state: State = {
    ...VIEW,
    text: " a&b=c\n+#\u05e9 %41",
    head: "L1H2#1",
    role: "induction",
    pins: ["L0H1", "L1H1"],
    way: "to",
    on: [7, 2],
    off: ["L0H4", "L1H1#2"],
    method: "zero",
    picked: [9, 3],
  };
  assert.deepEqual(read(written(state), start), state);
  assert.deepEqual(read(written(start), state), start);
  assert.deepEqual(read("", state), state);
  assert.deepEqual(read("#heads", state), state);
  assert.deepEqual(read("#text=x&method=evil&at=1.5+x+2+3+4", start), { ...start, text: "x", picked: [2, 3] });
});

test("a CSV holds quotes and line ends, and no formula", () => {
  assert.equal(csv([["a,b", 'c"d', "e\nf", 1.5, null]]), '"a,b","c""d","e\nf",1.5,\r\n');
  assert.equal(csv([["=1+1", "-x", -1]]), "'=1+1,'-x,-1\r\n");
});

test("a lower triangle is counted row by row", () => {
  const places = [0, 1, 2, 3].flatMap((query) => [...Array(query + 1).keys()].map((key) => place(query, key)));
  assert.deepEqual(places, [...Array(10).keys()]);
});
