// Keeps the board up to date without disturbing whoever is filling in a form. The page works without it.
"use strict";

const EVERY_MS = 3_000;

async function refresh() {
  const board = document.getElementById("board");
  const busy = board.contains(document.activeElement) || [...board.querySelectorAll("input:not([type=hidden])")].some((one) => one.value);
  if (document.hidden || busy) return;
  // From the origin, not relative: fetch refuses to follow a page address with the key in it (http://x:key@host/).
  const answer = await fetch(new URL("/", location.origin), { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("board");
  if (fresh && !board.contains(document.activeElement)) board.replaceWith(fresh);
}

// A server that is away is asked again: the board stands still meanwhile.
setInterval(() => refresh().catch((error) => console.warn(error)), EVERY_MS);
