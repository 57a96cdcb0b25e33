/* Colours that every kind of colour vision can distinguish: one hue in even steps of lightness for numbers, and the
   palette of Okabe and Ito, each with a letter, for verdicts. */

import { useEffect, useState } from "preact/hooks";

export interface Theme {
  dark: boolean;
  ink: string;
  soft: string;
  line: string;
  paper: string;
  empty: string;
  low: RGB;
  high: RGB;
  below: RGB;
  mark: string;
  clean: string;
  ablated: string;
  box: string;
}
type RGB = [number, number, number];

const LIGHT: Theme = {
  dark: false,
  ink: "#1b2430",
  soft: "#5b6675",
  line: "#d5dae1",
  paper: "#ffffff",
  empty: "#f1f3f6",
  low: [239, 243, 249],
  high: [8, 48, 107],
  below: [140, 66, 0],
  mark: "#d55e00",
  clean: "#0b62a4",
  ablated: "#c04a00",
  box: "#eff3f9",
};
const DARK: Theme = {
  dark: true,
  ink: "#e6eaf0",
  soft: "#9aa6b5",
  line: "#333d4b",
  paper: "#171d26",
  empty: "#1f2732",
  low: [33, 42, 55],
  high: [214, 235, 255],
  below: [255, 190, 130],
  mark: "#ff9f45",
  clean: "#6cb8ff",
  ablated: "#ffa35c",
  box: "#222c39",
};

let onPaper = false;
addEventListener("beforeprint", () => {
  onPaper = true;
});
addEventListener("afterprint", () => {
  onPaper = false;
});

/** Whether the page is being printed now. */
export function isPrinting(): boolean {
  return onPaper;
}

/** Whether the page is being printed, followed as it changes. */
export function usePrinting(): boolean {
  const [printing, set] = useState(onPaper);
  useEffect(() => {
    const [begin, end] = [() => set(true), () => set(false)];
    addEventListener("beforeprint", begin);
    addEventListener("afterprint", end);
    return () => {
      removeEventListener("beforeprint", begin);
      removeEventListener("afterprint", end);
    };
  }, []);
  return printing;
}

/** The reader's theme, followed as it changes; on paper the light one. */
export function useTheme(): Theme {
  const printing = usePrinting();
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [dark, set] = useState(query.matches);
  useEffect(() => {
    const follow = () => set(query.matches);
    query.addEventListener("change", follow);
    return () => query.removeEventListener("change", follow);
  }, []);
  return dark && !printing ? DARK : LIGHT;
}

/** From paper (0) to ink (1); below 0 towards orange. */
export function shade(value: number, theme: Theme): RGB {
  const share = Math.min(1, Math.abs(value));
  const end = value < 0 ? theme.below : theme.high;
  return theme.low.map((low, i) => Math.round(low + ((end[i] ?? 0) - low) * share)) as RGB;
}

const palettes = new Map<Theme, RGB[]>();

/** The 256 colours of a byte, 255 for 1. */
export function palette(theme: Theme): RGB[] {
  const known = palettes.get(theme) ?? [...Array(256).keys()].map((one) => shade(one / 255, theme));
  palettes.set(theme, known);
  return known;
}

export function css(colour: RGB): string {
  return `#${colour.map((one) => one.toString(16).padStart(2, "0")).join("")}`;
}

/** Black or white, whichever reads better on a colour. */
export function onTop(colour: RGB): string {
  const [r, g, b] = colour.map((one) => (one / 255) ** 2.2) as RGB;
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.22 ? "#14181f" : "#ffffff";
}

export function rgb(hex: string): RGB {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)) as RGB;
}

/** The colour of a verdict, on this theme. */
export function verdictColour(verdict: { colour: string; colour_dark: string }, theme: Theme): string {
  return theme.dark ? verdict.colour_dark : verdict.colour;
}
