/* How to repeat it: what was run, on what, with which versions. */

import type { JSX } from "preact";
import { useRef, useState } from "preact/hooks";
import type { Report } from "./data";
import { figureFiles } from "./figure";
import { save } from "./save";
import { fixed, tidy } from "./text";
import { Glossary } from "./words";
import { zipped } from "./zip";

export function ProvenanceList({ report }: { report: Report }): JSX.Element {
  const { model, provenance } = report;
  const rows: [string, string][] = [
    ["model", `${model.id}${model.revision ? ` at ${model.revision}` : ""}`],
    [
      "family",
      `${model.family}, ${model.n_layers} layers of ${model.n_heads} heads${groups(model.n_heads, model.n_kv_heads)}`,
    ],
    ["support", `${model.support}: ${model.reason}`],
    [
      "precision and device",
      `${provenance.dtype} on ${provenance.device}, attention by ${provenance.kernels.join(", ")}`,
    ],
    ["seed", String(provenance.seed)],
    ["scan", `${settings(report.scan.probe)}; ${fixed(report.scan.timing.wall_s, 1)} s`],
    [
      "verify",
      `${settings(report.verify.probe)}; as many held out; ${report.verify.ablation["method"]} ablation; ${report.verify.controls.tests} tests; ${fixed(report.verify.timing.wall_s, 1)} s`,
    ],
    ...(report.circuit
      ? ([
          [
            "circuit",
            `${settings(report.circuit.probe)}; ${report.circuit.senders_tried} senders tried; ${fixed(report.circuit.timing.wall_s, 1)} s`,
          ],
        ] as [string, string][])
      : []),
    [
      "versions",
      Object.entries(provenance.versions)
        .map((one) => one.join(" "))
        .join(", "),
    ],
  ];
  const notes = [
    ...(report.circuit?.notes ?? []),
    ...Object.entries(report.scan.unscored).map(([role, why]) => `${role} has no score: ${why}`),
    `patterns are kept to 8 bits, an error of 0.002 at most, for ${
      report.example.left_out ? `all but ${report.example.left_out} heads` : "every head"
    }`,
  ];
  return (
    <>
      <dl class="provenance">
        {rows.map(([key, value]) => (
          <>
            <dt>{key}</dt>
            <dd>{tidy(value)}</dd>
          </>
        ))}
      </dl>
      <h3>The command</h3>
      <Quoted text={tidy(provenance.command)} code />
      <h3>To cite</h3>
      <Quoted text={bibtex(report)} code />
      <h3>Notes</h3>
      <ul class="reasons">
        {notes.map((one) => (
          <li>{tidy(one)}</li>
        ))}
      </ul>
      <p class="files">
        <button type="button" onClick={() => save(`${file(model.id)}.zip`, "application/zip", everything(report))}>
          Download everything
        </button>
        {(["scan", "verify", "circuit"] as const)
          .filter((one) => report[one])
          .map((one) => (
            <button
              type="button"
              onClick={() => save(`${one}.json`, "application/json", JSON.stringify(report[one], null, 1))}
            >
              {one}.json
            </button>
          ))}
      </p>
      <Glossary />
    </>
  );
}

/** How the program and its version are cited. */
function bibtex({ provenance }: Report): string {
  const version = provenance.versions["headscope"] ?? "";
  return `@software{headscope, title = {headscope}, author = {{the headscope authors}}, version = {${version}}, note = {Finds, verifies and explains attention heads in decoder-only language models}}`;
}

/** All that the page holds: the document, each result, each figure as numbers and drawing, and how to make and cite it. */
function everything(report: Report): Blob {
  const json = (value: unknown) => JSON.stringify(value, null, 1);
  const results = (["scan", "verify", "circuit"] as const).filter((one) => report[one]);
  return zipped({
    "report.json": json(report),
    ...Object.fromEntries(results.map((one) => [`${one}.json`, json(report[one])])),
    ...Object.fromEntries(Object.entries(figureFiles()).map(([name, text]) => [`figures/${file(name)}`, text])),
    "command.txt": `${report.provenance.command}\n`,
    "cite.bib": `${bibtex(report)}\n`,
  });
}

/** A name that every file system takes. */
function file(name: string): string {
  return (
    name
      .replaceAll(/[^\w.-]+/g, "-")
      .replace(/^[-.]+/, "")
      .slice(0, 80) || "report"
  );
}

/** Text that can be copied with one press. */
export function Quoted({ text, code = false }: { text: string; code?: boolean }): JSX.Element {
  const body = useRef<HTMLElement>(null);
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(true);
      setTimeout(() => setCopied(false), 2000);
    } catch {
      // Without leave to use the clipboard the text is selected, so that one key copies it.
      if (body.current) getSelection()?.selectAllChildren(body.current);
    }
  };
  return (
    <div class={code ? "quoted code" : "quoted"}>
      {code ? <code ref={body}>{text}</code> : <p ref={body as { current: HTMLParagraphElement | null }}>{text}</p>}
      <button type="button" onClick={copy}>
        {copied ? "Copied" : "Copy"}
      </button>
    </div>
  );
}

function settings(probe: Record<string, unknown>): string {
  const { kind, ...rest } = probe;
  return `${String(kind).replaceAll("_", " ")} (${Object.entries(rest)
    .map(([key, value]) => `${key} ${String(value)}`)
    .join(", ")})`;
}

function groups(heads: number, keys: number | null): string {
  return keys === null || keys === heads ? "" : `, ${keys} key-value heads`;
}
