/* A part of the page: what it may show, and when a report has it. A file in `sections/` is one more. */

import type { ComponentChildren } from "preact";
import type { Theme } from "./colours";
import type { Cursor } from "./cursor";
import type { Heads, HeadVerdict, Report, Result } from "./data";
import type { View } from "./state";

/** What a part of the page may show. */
export interface Shared {
  report: Report;
  heads: Heads;
  ranked: HeadVerdict[];
  theme: Theme;
  head: string;
  open: (head: string) => void;
  view: View;
  onView: (change: Partial<View>) => void;
  /** The place that all patterns of the report's prompt read out. */
  cursor: Cursor;
}

export interface Part {
  id: string;
  title: string;
  class?: string;
  /** Whether a report has it; every one does by default. */
  when?: (report: Report) => boolean;
  draw: (shared: Shared) => ComponentChildren;
}

/** The section of one kind of evidence: the default export of `sections/KIND.tsx`. */
export interface Section {
  /** The kind's name, as its documents bear it. */
  kind: string;
  title: string;
  draw: (result: Result, shared: Shared) => ComponentChildren;
}

const found = import.meta.glob<{ default: Section }>("./sections/*.tsx", { eager: true });

/** The sections of all kinds, as parts of the page. */
export const SECTIONS: Part[] = Object.values(found).map(({ default: section }) => {
  const results = (report: Report) => (report.results ?? []).filter((one) => one.kind === section.kind);
  return {
    id: section.kind,
    title: section.title,
    when: (report) => results(report).length > 0,
    draw: (shared) => results(shared.report).map((one) => section.draw(one, shared)),
  };
});
